-- What every script about the ledger begins with: the ledger as it is.
--
-- KEYS: origin, lines, marks, prefixes, named, schemas
-- ARGV: prefix of all keys, time of day (0: the server's own), a fresh incarnation

-- Lines that are kept for those who follow and for tickets; tags, spaces and prefixes likewise.
local KEPT = 65536

-- Lines that are written anew when others have to go.
local LATEST = 1000

local origin_key, lines_key, marks_key = KEYS[1], KEYS[2], KEYS[3]
local prefixes_key, named_key, schemas_key = KEYS[4], KEYS[5], KEYS[6]
local prefix, told, fresh = ARGV[1], tonumber(ARGV[2]), ARGV[3]

local function sizes()
    return redis.call('ZCARD', marks_key) .. ' ' .. redis.call('ZCARD', prefixes_key) .. ' '
        .. redis.call('ZCARD', named_key) .. ' ' .. redis.call('HLEN', schemas_key)
end

local ledger = {}

-- The parts of a ledger are keys of their own, and a server that is short of memory may drop any
-- of them. What is left cannot be trusted then: a ledger begins, and all that is older is unknown.
local function begin()
    redis.call('UNLINK', origin_key, lines_key, marks_key, prefixes_key, named_key, schemas_key)
    ledger = { incarnation = fresh, last = 0, floor = 0, tip = '' }
    redis.call('HSET', origin_key, 'incarnation', fresh, 'last', 0, 'floor', 0, 'tip', '', 'sizes', sizes())
end

-- Whether the stream ends with the newest line of ours. Whoever may write to the server may add lines
-- behind it that continue nothing: what is ours is written anew without them, and goes on. Nothing
-- else than that can make the stream longer than the origin says, which every script that adds to it
-- changes in the same step.
local function ends_with_ours()
    local ours = string.format('%.0f-0', ledger.last)
    local newest = redis.call('XREVRANGE', lines_key, '+', '-', 'COUNT', 1)[1]
    if (newest and newest[1] or '0-0') == ours then
        return true
    end
    local lines = redis.call('XREVRANGE', lines_key, ours, '-', 'COUNT', LATEST)
    if ledger.last > 0 and not (lines[1] and lines[1][1] == ours) then
        return false
    end
    redis.call('UNLINK', lines_key)
    for at = #lines, 1, -1 do
        redis.call('XADD', lines_key, lines[at][1], unpack(lines[at][2]))
    end
    return true
end

local function open()
    local found = redis.call('HMGET', origin_key, 'incarnation', 'last', 'floor', 'tip', 'sizes')
    ledger = {
        incarnation = found[1],
        last = tonumber(found[2] or -1),
        floor = tonumber(found[3] or 0),
        tip = found[4],
    }
    if not found[1] or found[5] ~= sizes() or not ends_with_ours() then
        begin()
    end
end

local function keep()
    redis.call('HSET', origin_key, 'last', ledger.last, 'floor', ledger.floor, 'tip', ledger.tip, 'sizes', sizes())
end

-- Not asked for by scripts that do not want to know, and once by those that do.
local now = nil
local function millis()
    now = now or clock(told)
    return now
end

-- `tenant:space` of `tenant:space:key`.
local function space_of(name)
    return string.match(name, '^[^:]*:[^:]*')
end

-- Whether a line after `number` names a prefix of `name`.
local function prefix_named(number, name)
    for _, text in ipairs(redis.call('ZRANGEBYSCORE', prefixes_key, '(' .. number, '+inf')) do
        if string.sub(name, 1, #text) == text then
            return true
        end
    end
    return false
end

local function later(key, member, number)
    local score = redis.call('ZSCORE', key, member)
    return score and tonumber(score) > number
end

-- Whether a line after `number` names everything, the space, or a prefix of `name`.
local function broadly_named(number, name)
    return later(marks_key, 'e', number)
        or later(marks_key, 's' .. space_of(name), number)
        or prefix_named(number, name)
end

-- Whether no line after the ticket names the key, its space, a tag or a prefix: rules 3 and 5 of
-- the protocol.
local function permits(incarnation, number, name, tags)
    if incarnation ~= ledger.incarnation or number > ledger.last then
        return false
    end
    if number == ledger.last then
        return true
    end
    if number < ledger.floor or number < ledger.last - KEPT then
        return false
    end
    if later(named_key, name, number) or broadly_named(number, name) then
        return false
    end
    for _, tag in ipairs(tags) do
        if later(marks_key, 't' .. tag, number) then
            return false
        end
    end
    return true
end

-- A key of ours: all that belongs to a name lies in one slot.
local function key_of(name, what)
    return prefix .. '{' .. name .. '}:' .. what
end

-- Whether the counter of a name lives: lines about its key drop it by themselves, broader ones are
-- judged when it is read.
local function counter_lives(key, name)
    local found = redis.call('HMGET', key, 'value', 'incarnation', 'number', 'expires')
    local number, expires = tonumber(found[3] or 0), tonumber(found[4] or 0)
    return found[1]
        and found[2] == ledger.incarnation
        and (expires == 0 or expires > millis())
        and number >= ledger.floor
        and not broadly_named(number, name)
end

open()
