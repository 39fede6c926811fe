-- A counter: adds to it, or reads it if nothing is to be added.
--
-- `lived` says whether it counts on, `incarnation` and `last` are where the ledger is, `told` is the
-- time if callers tell it. Answers with the value as a text, because numbers of scripts have 53
-- bits.
local function count(key, by, lives, lived, incarnation, last, now, told)
    if by == '' then
        return lived and redis.call('HGET', key, 'value')
    end
    if not lived then
        redis.call('UNLINK', key)
        redis.call('HSET', key, 'value', 0, 'incarnation', incarnation, 'number', last,
            'expires', string.format('%.0f', lives > 0 and now + lives or 0))
        if lives > 0 then
            redis.call('PEXPIRE', key, keeps(told, lives))
        end
    end
    local added = redis.pcall('HINCRBY', key, 'value', by)
    if type(added) == 'table' and added.err then
        local most = string.sub(by, 1, 1) == '-' and '-9223372036854775808' or '9223372036854775807'
        redis.call('HSET', key, 'value', most)
    end
    return redis.call('HGET', key, 'value')
end

