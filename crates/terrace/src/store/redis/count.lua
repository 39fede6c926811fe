-- Adds to a counter, or reads it if nothing is to be added.
--
-- ARGV from 4: the counter's name, what is added ('' to read only), milliseconds to live (0: for
-- ever). Answers with the value as a text, because numbers of scripts have 53 bits.

local name, by, lives = ARGV[4], ARGV[5], tonumber(ARGV[6])
local key = key_of(name, 'count')
local lived = counter_lives(key, name)
if by == '' then
    return lived and redis.call('HGET', key, 'value')
end
if not lived then
    redis.call('UNLINK', key)
    local expires = lives > 0 and millis() + lives or 0
    redis.call('HSET', key, 'value', 0, 'incarnation', ledger.incarnation, 'number', ledger.last,
        'expires', string.format('%.0f', expires))
    if lives > 0 then
        -- Whoever tells the time decides when it is over.
        redis.call('PEXPIRE', key, tonumber(ARGV[2]) == 0 and lives or lives + 60000)
    end
end
local added = redis.pcall('HINCRBY', key, 'value', by)
if type(added) == 'table' and added.err then
    local most = string.sub(by, 1, 1) == '-' and '-9223372036854775808' or '9223372036854775807'
    redis.call('HSET', key, 'value', most)
end
return redis.call('HGET', key, 'value')
