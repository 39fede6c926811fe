-- Appends a line for each name; in the same step it drops what the authority holds under a name, or
-- stores a frame there.
--
-- ARGV from 4: the position that the caller knows (incarnation, number, tip), a random text for
-- the tips of these lines, whether values lie apart from the ledger, whether there are frames, then a
-- condition ('' or incarnation of the ticket, its number, name, count of tags, tags), then for each
-- write how many lines it has, and for each of them its kind, its text, and '' or the schema of a
-- frame under it, count of its tags, tags, milliseconds to live (0: for ever, -1: it is over already),
-- and the frame, to which the stamp is added: the last line of its write.
-- Answers with incarnation, number of the last line, its tip, and for each name 1 if something was
-- held that nothing takes the place of, 2 if its frame is not stored, otherwise 0; or, if values lie
-- apart, which schemas they may have. With nothing if the condition does not hold.

local known = { incarnation = ARGV[4], number = tonumber(ARGV[5]), tip = ARGV[6] }
local random, is_apart, has_frames, at = ARGV[7], ARGV[8] == '1', ARGV[9] == '1', 10

-- Somebody knows a later line than there is: the server was put back to an older state, and what
-- was invalidated meanwhile is not known here any more.
if known.incarnation == ledger.incarnation
    and (known.number > ledger.last or (known.number == ledger.last and known.tip ~= ledger.tip)) then
    begin()
end

-- Whether its sender has heard of every line there is.
local is_newest = known.incarnation == ledger.incarnation and known.number == ledger.last

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

-- Two builds that disagree about a type share the name of a value. Most names have the space of the
-- one before.
local space, schemas_of_spaces = nil, {}
local function schemas_of(name)
    if not space or string.sub(name, 1, #space + 1) ~= space .. ':' then
        space = space_of(name)
    end
    local schemas = schemas_of_spaces[space]
    if not schemas then
        schemas = {}
        for schema in string.gmatch(redis.call('HGET', schemas_key, space) or '', '%x+') do
            schemas[#schemas + 1] = schema
        end
        schemas_of_spaces[space] = schemas
    end
    return schemas
end

local function void(name, with_lease)
    local keys, counter = {}, key_of(name, 'count')
    local counted = redis.call('EXISTS', counter) == 1 and counter_lives(counter, name)
    for _, schema in ipairs(schemas_of(name)) do
        keys[#keys + 1] = key_of(name, '1:' .. schema)
    end
    local gone = #keys > 0 and redis.call('UNLINK', unpack(keys)) or 0
    redis.call('UNLINK', counter)
    if with_lease then
        redis.call('UNLINK', key_of(name, 'lease'))
    end
    return (gone > 0 or counted) and 1 or 0
end

local function replace(name, schema, lives, frame)
    local schemas, is_known = schemas_of(name), false
    for _, other in ipairs(schemas) do
        is_known = is_known or other == schema
        if other ~= schema then
            redis.call('UNLINK', key_of(name, '1:' .. other))
        end
    end
    if not is_known then
        schemas[#schemas + 1] = schema
        redis.call('HSET', schemas_key, space, table.concat(schemas, ' '))
    end
    store(key_of(name, '1:' .. schema), lives, frame)
end

-- As frame.rs wants it, behind a frame: incarnation and number, and both once more.
local incarnation = string.gsub(ledger.incarnation, '%x%x', function(byte)
    return string.char(tonumber(byte, 16))
end)
incarnation = string.reverse(incarnation)
local function stamp_of(number)
    local stamp = incarnation .. struct.pack('<I8', number)
    return stamp .. stamp
end

-- What is told to the server for many lines at once: keys that were named, each behind the number of
-- its line, and the counters of names under which frames were stored.
local named, counters = {}, {}
local function tell()
    if #named > 0 then
        redis.call('ZADD', named_key, unpack(named))
    end
    if #counters > 0 then
        redis.call('UNLINK', unpack(counters))
    end
    named, counters = {}, {}
end

-- A server without memory lets a script go on that has dropped something, or tried to: what is stale
-- has to be named then, too. Frames are not to be stored then.
if not has_frames then
    redis.call('UNLINK', prefix .. '{ledger}:room')
end

local KEPT_TEXT = string.format('%d', KEPT)
local held, lines = {}, 0
while at <= #ARGV do
    local last = ledger.last + tonumber(ARGV[at])
    local stamp = has_frames and stamp_of(last)
    at = at + 1
    for number = ledger.last + 1, last do
        local kind, text, schema = ARGV[at], ARGV[at + 1], ARGV[at + 2]
        at = at + 3
        lines = lines + 1
        -- As a text: numbers are turned into one for every call, and that takes longer than the call.
        local id = string.format('%d', number)
        local tip = random .. id
        redis.call('XADD', lines_key, 'MAXLEN', '~', KEPT_TEXT, id .. '-0',
            'kind', kind, 'name', text, 'after', ledger.tip, 'tip', tip)
        ledger.last, ledger.tip = number, tip
        held[lines] = is_apart and '' or 0
        if schema ~= '' then
            local tags, count = {}, tonumber(ARGV[at])
            for tag = 1, count do
                tags[tag] = ARGV[at + tag]
            end
            at = at + count
            -- What was given up may come late, when others have written and been told so. Whoever waits
            -- for this one stores it by itself, as what its line permits.
            if is_newest or permits(known.incarnation, known.number, text, tags) then
                replace(text, schema, ARGV[at + 1], ARGV[at + 2] .. stamp)
                counters[#counters + 1] = key_of(text, 'count')
            else
                void(text, kind == 'k')
                held[lines] = 2
            end
            at = at + 3
        elseif kind == 'k' or kind == 'w' then
            held[lines] = is_apart and table.concat(schemas_of(text), ' ') or void(text, kind == 'k')
        end
        if kind == 'k' or kind == 'w' then
            named[#named + 1] = id
            named[#named + 1] = text
            -- A call has room for a few thousand arguments.
            if #named >= 1000 then
                tell()
            end
        elseif kind == 'p' then
            redis.call('ZADD', prefixes_key, id, text)
        else
            redis.call('ZADD', marks_key, id, kind .. text)
        end
    end
end
tell()

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
