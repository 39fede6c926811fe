-- Stores a frame that lies apart from the ledger, which has permitted it.
--
-- KEYS: the fence of its name, the frame. ARGV: incarnation and number of its stamp, milliseconds to
-- live (0: for ever, -1: it is over already), the frame.
-- Answers with 1 if it is stored, 0 if a later line about its key has been here since.

local incarnation, number = string.match(redis.call('GET', KEYS[1]) or '', '^(%x+) (%d+)$')
if incarnation == ARGV[1] and tonumber(number) > tonumber(ARGV[2]) then
    return 0
end
store(KEYS[2], ARGV[3], ARGV[4])
return 1
