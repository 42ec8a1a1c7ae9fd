/* A small printf: %c %s %d %u %x %%, with l, a width, and 0 before it. */
#pragma once
#include <stdarg.h>
#include <stdint.h>

void put(char c); /* where characters go */

static void put_number(uint64_t value, unsigned base, int width, char fill, int negative)
{
	char digits[24];
	int n = 0;

	do
		digits[n++] = "0123456789abcdef"[value % base];
	while (value /= base);
	if (negative && fill == '0')
		put('-');
	for (int i = n + negative; i < width; i++)
		put(fill);
	if (negative && fill != '0')
		put('-');
	while (n)
		put(digits[--n]);
}

__attribute__((format(printf, 1, 2))) static void print(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	for (; *format; format++) {
		if (*format != '%') {
			put(*format);
			continue;
		}
		char fill = ' ';
		int width = 0, wide = 0;
		for (format++; *format == '0' && !width; format++)
			fill = '0';
		for (; *format >= '0' && *format <= '9'; format++)
			width = 10 * width + *format - '0';
		for (; *format == 'l'; format++)
			wide = 1;
		switch (*format) {
		case 'c':
			put(va_arg(args, int));
			break;
		case 's':
			for (const char *s = va_arg(args, const char *); *s; s++, width--)
				put(*s);
			while (width-- > 0)
				put(' ');
			break;
		case 'd': {
			int64_t v = wide ? va_arg(args, long) : va_arg(args, int);
			put_number(v < 0 ? -(uint64_t)v : (uint64_t)v, 10, width, fill, v < 0);
			break;
		}
		case 'u':
		case 'x': {
			uint64_t v = wide ? va_arg(args, unsigned long) : va_arg(args, unsigned);
			put_number(v, *format == 'x' ? 16 : 10, width, fill, 0);
			break;
		}
		case '%':
			put('%');
			break;
		default: /* not one of ours: shown as it is */
			put('%');
			put(*format);
		}
	}
	va_end(args);
}
