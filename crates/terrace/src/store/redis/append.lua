-- Appends a line for each name, and drops what the authority holds under a name in the same step.
--
-- ARGV from 4: the position that the caller knows (incarnation, number, tip), a random text for
-- the tips of these lines, whether values lie apart from the ledger, then a condition ('' or
-- incarnation of the ticket, its number, name, count of tags, tags), then for each line its kind and
-- its text.
-- Answers with incarnation, number of the last line, its tip, and for each name whether something
-- was held, or, if values lie apart, which schemas they may have; or with nothing if the condition
-- does not hold.

local known = { incarnation = ARGV[4], number = tonumber(ARGV[5]), tip = ARGV[6] }
local random, is_apart, at = ARGV[7], ARGV[8] == '1', 9

-- Somebody knows a later line than there is: the server was put back to an older state, and what
-- was invalidated meanwhile is not known here any more.
if known.incarnation == ledger.incarnation
    and (known.number > ledger.last or (known.number == ledger.last and known.tip ~= ledger.tip)) then
    begin()
end

local condition = ARGV[at]
at = at + 1
if condition ~= '' then
    local number, name, count = tonumber(ARGV[at]), ARGV[at + 1], tonumber(ARGV[at + 2])
    local tags = {}
    for tag = 1, count do
        tags[tag] = ARGV[at + 2 + tag]
    end
    at = at + 3 + count
    if not permits(condition, number, name, tags) then
        return false
    end
end

-- Two builds that disagree about a type share the name of a value.
local function schemas_of(name)
    return redis.call('HGET', schemas_key, space_of(name)) or ''
end

local function void(name, with_lease)
    local keys, counter = {}, key_of(name, 'count')
    local counted = redis.call('EXISTS', counter) == 1 and counter_lives(counter, name)
    for schema in string.gmatch(schemas_of(name), '%x+') do
        keys[#keys + 1] = key_of(name, '1:' .. schema)
    end
    local gone = #keys > 0 and redis.call('UNLINK', unpack(keys)) or 0
    redis.call('UNLINK', counter)
    if with_lease then
        redis.call('UNLINK', key_of(name, 'lease'))
    end
    return (gone > 0 or counted) and 1 or 0
end

-- A server without memory lets a script go on that has dropped something, or tried to: what is stale
-- has to be named then, too.
redis.call('UNLINK', prefix .. '{ledger}:room')

local held, lines = {}, 0
while at < #ARGV do
    local kind, text = ARGV[at], ARGV[at + 1]
    at = at + 2
    lines = lines + 1
    local number = ledger.last + 1
    local tip = random .. lines
    redis.call('XADD', lines_key, 'MAXLEN', '~', KEPT, number .. '-0',
        'kind', kind, 'name', text, 'after', ledger.tip, 'tip', tip)
    ledger.last, ledger.tip = number, tip
    held[lines] = is_apart and '' or 0
    if kind == 'k' or kind == 'w' then
        redis.call('ZADD', named_key, number, text)
        held[lines] = is_apart and schemas_of(text) or void(text, kind == 'k')
    elseif kind == 'p' then
        redis.call('ZADD', prefixes_key, number, text)
    else
        redis.call('ZADD', marks_key, number, kind .. text)
    end
end

local function forget(key)
    local over = redis.call('ZCARD', key) - KEPT
    if over > 0 then
        local newest_gone = redis.call('ZRANGE', key, over - 1, over - 1, 'WITHSCORES')[2]
        ledger.floor = math.max(ledger.floor, tonumber(newest_gone))
        redis.call('ZREMRANGEBYRANK', key, 0, over - 1)
    end
end

if lines > 0 then
    redis.call('ZREMRANGEBYSCORE', named_key, '-inf', ledger.last - KEPT)
    forget(marks_key)
    forget(prefixes_key)
    keep()
end
return { ledger.incarnation, ledger.last, ledger.tip, held }
