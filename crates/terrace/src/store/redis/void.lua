-- Drops what is held under a name, apart from the ledger, and fences off what is older.
--
-- KEYS: the fence, the lease, then what is dropped: the counter and frames.
-- ARGV: incarnation and number of the line, whether the lease is void too, how many milliseconds the
-- fence stands.
-- Answers with 1 if something was held.

-- Dropped first: a server without memory refuses a fence until the script has dropped something.
local gone = 0
for at = 3, #KEYS do
    gone = gone + redis.call('UNLINK', KEYS[at])
end
if ARGV[3] == '1' then
    redis.call('UNLINK', KEYS[2])
end
local incarnation, number = string.match(redis.call('GET', KEYS[1]) or '', '^(%x+) (%d+)$')
if incarnation ~= ARGV[1] or tonumber(number) < tonumber(ARGV[2]) then
    redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'PX', ARGV[4])
end
return gone > 0 and 1 or 0
