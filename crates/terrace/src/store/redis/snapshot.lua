-- What a process that joins has to know.

return {
    ledger.incarnation, ledger.last, ledger.tip, ledger.floor,
    redis.call('ZRANGE', marks_key, 0, -1, 'WITHSCORES'),
    redis.call('ZRANGE', prefixes_key, 0, -1, 'WITHSCORES'),
}
