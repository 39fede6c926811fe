-- Grants the right to load a key unless somebody else has it.
--
-- KEYS: the lease. ARGV: time of day (0: the server's own), milliseconds it lasts, its token.
-- Answers with whether it is granted, and for how many milliseconds from now. Whoever asks twice, as a
-- client of a cluster does when a connection breaks, is the one who has it.

local told, lasts = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = clock(told)
local holder, until_then = string.match(redis.call('GET', KEYS[1]) or '', '^(.*):(%d+)$')
if until_then and tonumber(until_then) > now and holder ~= ARGV[3] then
    return { 0, tonumber(until_then) - now }
end
redis.call('SET', KEYS[1], ARGV[3] .. ':' .. string.format('%.0f', now + lasts), 'PX', keeps(told, lasts))
return { 1, lasts }
