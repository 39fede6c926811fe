-- Prolongs a lease, or gives it back if it is to last 0 milliseconds.
--
-- KEYS: the lease. ARGV: time of day (0: the server's own), milliseconds it lasts, its token.
-- Answers with 1 if the token is the one that stands.

local told, lasts = tonumber(ARGV[1]), tonumber(ARGV[2])
local token = string.match(redis.call('GET', KEYS[1]) or '', '^(%x+):')
if token ~= ARGV[3] then
    return 0
end
if lasts == 0 then
    redis.call('UNLINK', KEYS[1])
    return 1
end
redis.call('SET', KEYS[1], token .. ':' .. string.format('%.0f', clock(told) + lasts),
    'PX', keeps(told, lasts))
return 1
