/*
 * String search: Boyer, Moore and Horspool's skips through a text of words, and a comparison where they land.
 *
 * A unit takes four patterns from anywhere in the text, and sums up where they are in the next KiB each.
 *
 * #: args --defsym EVENTS=6 --defsym UNITS=300
 * #: expect all: exit_code == 0
 * #: expect all: mem64(checksum) == 0x2001cfb01c1f750d
 * #: expect all: pmis == mem64(perf_nmis)
 * #: expect all: mem64(perf_samples) > 20
 */
#include "workload.h"

#define TEXT 65536u
#define WINDOW 1024u
#define PATTERNS 4
#define LONGEST 9

const char workload_name[] = "match";

static uint8_t text[TEXT];
static uint8_t skip[256];
static uint32_t window;

/* A language of syllables: patterns come back, letters have frequencies. */
void workload_setup(uint64_t seed)
{
	static const char consonants[] = "ttnnssrrhldcmw", vowels[] = "eeaaiou";
	uint32_t at = 0;

	random_seed(seed);
	while (at < TEXT - 16) {
		for (uint32_t syllables = 1 + random_below(3); syllables; syllables--) {
			text[at++] = consonants[random_below(14)];
			text[at++] = vowels[random_below(7)];
			if (!random_below(3))
				text[at++] = consonants[random_below(14)];
		}
		text[at++] = ' ';
	}
	while (at < TEXT)
		text[at++] = ' ';
	window = 0;
}

/* Where the pattern is in the window, summed up. */
static uint64_t search(const uint8_t *pattern, uint32_t length)
{
	const uint8_t *at = text + window, *end = at + WINDOW - length;
	uint64_t sum = 0;

	for (uint32_t c = 0; c < 256; c++)
		skip[c] = length;
	for (uint32_t i = 0; i < length - 1; i++)
		skip[pattern[i]] = length - 1 - i;
	for (; at <= end; at += skip[at[length - 1]]) {
		uint32_t same = length;

		while (same && at[same - 1] == pattern[same - 1])
			same--;
		if (!same)
			sum = sum * 5 + (at - text);
	}
	return sum;
}

uint64_t workload_unit(void)
{
	uint64_t sum = 0;

	for (int i = 0; i < PATTERNS; i++) {
		uint32_t length = 6 + random_below(LONGEST - 5);

		sum = sum * 31 + search(text + random_below(TEXT - LONGEST), length) + length;
		window = (window + WINDOW) % TEXT;
	}
	return sum;
}
