-- Counts apart from the ledger.
--
-- KEYS: the counter. ARGV: time of day (0: the server's own), incarnation, number of the last line,
-- of the last line that may have dropped it, what is added ('' to read only), milliseconds to live
-- (0: for ever).

local told = tonumber(ARGV[1])
local now = clock(told)
local found = redis.call('HMGET', KEYS[1], 'value', 'incarnation', 'number', 'expires')
local number, expires = tonumber(found[3] or 0), tonumber(found[4] or 0)
local lived = found[1] and found[2] == ARGV[2] and (expires == 0 or expires > now)
    and number >= tonumber(ARGV[4])
return count(KEYS[1], ARGV[5], tonumber(ARGV[6]), lived, ARGV[2], ARGV[3], now, told)
