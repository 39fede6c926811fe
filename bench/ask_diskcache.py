"""python-diskcache, as ./scripts/bench disk asks it: a request in JSON a line, an answer a line.

The first argument is the directory. Times are taken here, around the calls alone.
"""

import json
import os
import sys
import time

import diskcache


def key(number):
    return "user:%08d" % number


def value(number, length):
    """A value for the key of this number: it begins with the number."""
    return number.to_bytes(8, "little") + os.urandom(length - 8)


def fill(cache, count, length):
    for first in range(0, count, 1000):
        with cache.transact():
            for number in range(first, min(first + 1000, count)):
                cache.set(key(number), value(number, length))


def read(cache, order, length):
    times = []
    for number in order:
        name = key(number)
        begun = time.perf_counter_ns()
        found = cache.get(name)
        times.append(time.perf_counter_ns() - begun)
        assert found is not None and len(found) == length, "a read found nothing"
        assert found[:8] == number.to_bytes(8, "little"), "a read found another value"
    return times


def write(cache, order, length):
    times = []
    for number in order:
        name, stored = key(number), value(number, length)
        begun = time.perf_counter_ns()
        cache.set(name, stored)
        times.append(time.perf_counter_ns() - begun)
    return times


def write_for(cache, order, length, millis):
    """Writes these over and over, for so long; those of the first tenth do not count."""
    times, number = [], 0
    begun = time.perf_counter_ns()
    while (passed := time.perf_counter_ns() - begun) < millis * 1_000_000:
        some = write(cache, [order[number % len(order)]], length)
        number += 1
        if passed >= millis * 100_000:
            times += some
    return times


def reopen(directory, number):
    begun = time.perf_counter_ns()
    cache = diskcache.Cache(directory)
    found = cache.get(key(number))
    took = time.perf_counter_ns() - begun
    assert found is not None, "a read found nothing"
    cache.close()
    return [took]


def main():
    directory = sys.argv[1]
    # As it comes, but for the bound: nothing is to be evicted.
    cache = diskcache.Cache(directory, size_limit=4 << 30)
    print(json.dumps({"version": diskcache.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        do, length = request["do"], request.get("length", 0)
        if do == "fill":
            fill(cache, request["count"], length)
            times = []
        elif do == "read":
            times = read(cache, request["order"], length)
        elif do == "write":
            times = write(cache, request["order"], length)
        elif do == "writefor":
            times = write_for(cache, request["order"], length, request["millis"])
        else:
            cache.close()
            times = reopen(directory, request["number"])
        print(json.dumps({"nanos": times}), flush=True)
    cache.close()


main()
