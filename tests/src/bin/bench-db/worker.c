/* The bench's work done by libtdb; the same as worker.rs. Written for this bench. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <signal.h>
#include <time.h>
#include <tdb.h>

static TDB_CONTEXT *tdb;
static unsigned char *value;
static uint32_t records, size;
static uint64_t state, sum;

static void must(int ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "libtdb: %s: %s\n", what, tdb ? tdb_errorstr(tdb) : "open");
		exit(1);
	}
}

static long long between(const struct timespec *from, const struct timespec *to)
{
	return (to->tv_sec - from->tv_sec) * 1000000000LL + (to->tv_nsec - from->tv_nsec);
}

static uint32_t some(void)
{
	state = state * 6364136223846793005ULL + 1442695040888963407ULL;
	return (uint32_t)((state >> 33) % records);
}

static TDB_DATA key_of(uint32_t i, char *text)
{
	TDB_DATA key = { (unsigned char *)text, 12 };
	snprintf(text, 16, "key-%08u", i);
	return key;
}

static void store(uint32_t i, uint32_t round)
{
	char text[16];
	TDB_DATA data = { value, size };
	memcpy(value, &round, 4);
	must(tdb_store(tdb, key_of(i, text), data, TDB_REPLACE) == 0, "store");
}

static int visit(TDB_CONTEXT *t, TDB_DATA key, TDB_DATA data, void *private)
{
	(void)t; (void)key; (void)private;
	sum += data.dsize + data.dptr[0];
	return 0;
}

static void work(const char *op, uint32_t count)
{
	char text[16];
	uint32_t i;
	if (!strcmp(op, "fetch")) {
		for (i = 0; i < count; i++) {
			TDB_DATA data = tdb_fetch(tdb, key_of(some(), text));
			must(data.dptr != NULL, "fetch");
			sum += data.dptr[0];
			free(data.dptr);
		}
	} else if (!strcmp(op, "store")) {
		for (i = 0; i < count; i++) store(some(), i);
	} else if (!strcmp(op, "delete")) {
		for (i = 0; i < count; i++)
			must(tdb_delete(tdb, key_of(records + i, text)) == 0, "delete");
	} else if (!strcmp(op, "traverse")) {
		for (i = 0; i < count; i++)
			must(tdb_traverse_read(tdb, visit, NULL) >= 0, "traverse");
	} else if (!strcmp(op, "commit")) {
		for (i = 0; i < count; i++) {
			must(tdb_transaction_start(tdb) == 0, "start");
			store(some(), i);
			must(tdb_transaction_commit(tdb) == 0, "commit");
		}
	} else {
		exit(2);
	}
}

/* PATH FLAGS HASH_SIZE RECORDS SIZE OP COUNT NUMBER */
int main(int argc, char **argv)
{
	struct timespec from, to, cpu_from, cpu_to;
	uint32_t count, i;
	char line[8];
	if (argc != 9) return 2;
	records = (uint32_t)atol(argv[4]);
	size = (uint32_t)atol(argv[5]);
	count = (uint32_t)atol(argv[7]);
	state = (uint64_t)atol(argv[8]);
	value = calloc(1, size);
	tdb = tdb_open(argv[1], atoi(argv[3]), atoi(argv[2]), O_RDWR | O_CREAT, 0600);
	must(value && tdb, "open");
	if (!strcmp(argv[6], "fill")) {
		for (i = 0; i < records; i++) store(i, i);
		return tdb_close(tdb);
	}
	if (!strcmp(argv[6], "delete")) {
		/* Each process deletes records of its own, after the others. */
		uint32_t all = records;
		records = all + (uint32_t)state * 10000000;
		for (i = 0; i < count; i++) store(records + i, i);
	}
	puts("ready");
	fflush(stdout);
	if (!fgets(line, sizeof line, stdin)) return 1;
	clock_gettime(CLOCK_MONOTONIC, &from);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu_from);
	work(argv[6], count);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu_to);
	clock_gettime(CLOCK_MONOTONIC, &to);
	printf("%lld %lld %llu\n", between(&from, &to), between(&cpu_from, &cpu_to),
	       (unsigned long long)sum);
	fflush(stdout);
	/* The memory of a process is read while it waits here. */
	if (!fgets(line, sizeof line, stdin)) return 0;
	return tdb_close(tdb);
}
