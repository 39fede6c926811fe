-- Stores frames that the ledger permits.
--
-- ARGV from 4: whether values lie apart from the ledger, so that they are judged here and stored
-- there; then for each frame: name, schema, milliseconds to live (0: for ever, -1: it is over
-- already), incarnation and number of its stamp, count of tags, tags, the frame.
-- Answers for each frame 1 if it is stored, 0 if it is refused.

local is_apart = ARGV[4] == '1'
local answers, at = {}, 5
while at <= #ARGV do
    local name, schema, lives = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    local incarnation, number, count = ARGV[at + 3], tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
    local tags = {}
    for tag = 1, count do
        tags[tag] = ARGV[at + 5 + tag]
    end
    at = at + 6 + count
    local frame = nil
    if not is_apart then
        frame = ARGV[at]
        at = at + 1
    end
    local key = key_of(name, '1:' .. schema)
    if not permits(incarnation, number, name, tags) then
        answers[#answers + 1] = 0
    else
        local space = space_of(name)
        local schemas = redis.call('HGET', schemas_key, space) or ''
        if not string.find(schemas, schema, 1, true) then
            redis.call('HSET', schemas_key, space, schemas .. ' ' .. schema)
            keep()
        end
        -- One that lies apart is stored by whoever asks.
        if not is_apart then
            store(key, lives, frame)
        end
        answers[#answers + 1] = 1
    end
end
return answers
