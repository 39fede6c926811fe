-- What the ledger says of a counter's name that lies apart from it.
--
-- ARGV from 4: the name.
-- Answers with incarnation, number of the last line, and of the last that names the space, a prefix
-- of the name, or everything, or may have.

local name = ARGV[4]
local latest = ledger.floor
local function consider(number)
    latest = math.max(latest, tonumber(number or 0))
end
consider(redis.call('ZSCORE', marks_key, 'e'))
consider(redis.call('ZSCORE', marks_key, 's' .. space_of(name)))
local prefixes = redis.call('ZRANGEBYSCORE', prefixes_key, '(' .. latest, '+inf', 'WITHSCORES')
for at = 1, #prefixes, 2 do
    if string.sub(name, 1, #prefixes[at]) == prefixes[at] then
        consider(prefixes[at + 1])
    end
end
return { ledger.incarnation, ledger.last, latest }
