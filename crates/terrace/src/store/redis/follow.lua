-- The lines after a position, and what the ledger is.
--
-- ARGV from 4: number of the position, most lines to return.

local number, most = tonumber(ARGV[4]), tonumber(ARGV[5])
local lines = {}
if number < ledger.last then
    lines = redis.call('XRANGE', lines_key, '(' .. number .. '-0', '+', 'COUNT', most)
end
return { ledger.incarnation, ledger.last, ledger.tip, KEPT, lines }
