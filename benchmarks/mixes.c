/* Four things that programs do all day, each folded into a CRC: lists, a small matrix, a scanner, bits. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define NODES 128
#define SIDE 12

struct node {
	struct node *next;
	u16 key, value;
};

static struct node nodes[NODES];
static int left[SIDE][SIDE], right[SIDE][SIDE], product[SIDE][SIDE];
static char text[256];
static u32 seed = 12345;

static u32 draw(void)
{
	seed = seed * 1664525u + 1013904223u;
	return seed >> 8;
}

static u32 crc(u32 sum, u32 word)
{
	for (int k = 0; k < 32; k++) {
		u32 low = (sum ^ word) & 1;

		word >>= 1;
		sum >>= 1;
		if (low)
			sum ^= 0xedb88320u;
	}
	return sum;
}

static struct node *merge(struct node *a, struct node *b)
{
	struct node head, *last = &head;

	while (a && b) {
		struct node **least = a->key <= b->key ? &a : &b;

		last->next = *least;
		last = *least;
		*least = (*least)->next;
	}
	last->next = a ? a : b;
	return head.next;
}

static struct node *sorted(struct node *list, int length)
{
	struct node *half = list, *rest;

	if (length < 2)
		return list;
	for (int k = 1; k < length / 2; k++)
		half = half->next;
	rest = half->next;
	half->next = 0;
	return merge(sorted(list, length / 2), sorted(rest, length - length / 2));
}

static u32 lists(u32 sum)
{
	struct node *list = 0;

	for (int k = 0; k < NODES; k++) {
		nodes[k].key = draw() & 0xfff;
		nodes[k].value = k;
		nodes[k].next = list;
		list = &nodes[k];
	}
	list = sorted(list, NODES);
	for (int k = 0; k < 8; k++) {
		u16 wanted = draw() & 0xfff;

		for (struct node *at = list; at; at = at->next)
			if (at->key >= wanted) {
				sum += at->value;
				break;
			}
	}
	return crc(sum, list->key);
}

static u32 matrices(u32 sum)
{
	for (int i = 0; i < SIDE; i++)
		for (int j = 0; j < SIDE; j++) {
			left[i][j] = (int)(draw() & 0xff) - 128;
			right[i][j] = (short)draw();
		}
	for (int i = 0; i < SIDE; i++)
		for (int j = 0; j < SIDE; j++) {
			int cell = 0;

			for (int k = 0; k < SIDE; k++)
				cell += left[i][k] * right[k][j];
			product[i][j] = cell;
			if (cell > 0)
				sum += (u32)cell >> 3;
		}
	return crc(sum, (u32)product[SIDE - 1][SIDE - 1]);
}

enum state { START, SIGN, WHOLE, POINT, FRACTION, BAD, STATES };

static u32 scanner(u32 sum)
{
	static const char letters[] = "0123456789+-.,, x";
	enum state state = START;
	u32 seen[STATES] = {0};

	for (u32 k = 0; k < sizeof(text); k++)
		text[k] = letters[draw() % (sizeof(letters) - 1)];
	for (u32 k = 0; k < sizeof(text); k++) {
		char c = text[k];

		switch (state) {
		case START:
			state = c == '+' || c == '-' ? SIGN : c >= '0' && c <= '9' ? WHOLE : c == '.' ? POINT : BAD;
			break;
		case SIGN:
			state = c >= '0' && c <= '9' ? WHOLE : c == '.' ? POINT : BAD;
			break;
		case WHOLE:
			state = c >= '0' && c <= '9' ? WHOLE : c == '.' ? POINT : c == ',' ? START : BAD;
			break;
		case POINT:
		case FRACTION:
			state = c >= '0' && c <= '9' ? FRACTION : c == ',' ? START : BAD;
			break;
		default:
			state = c == ',' || c == ' ' ? START : BAD;
		}
		seen[state]++;
	}
	for (int k = 0; k < STATES; k++)
		sum = crc(sum, seen[k]);
	return sum;
}

static u32 bits(u32 sum)
{
	for (int k = 0; k < 64; k++) {
		u32 word = draw() ^ sum;
		u32 ones = 0;

		while (word) {
			word &= word - 1;
			ones++;
		}
		sum = (sum << 5 | sum >> 27) + ones;
	}
	return sum;
}

/* `rounds` of all four; what they came to. */
u64 work(u64 rounds)
{
	u32 sum = 1;

	while (rounds--)
		sum = bits(scanner(matrices(lists(sum))));
	return sum;
}
