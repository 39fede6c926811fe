-- Stores a frame that lives so many milliseconds (0: for ever, -1: it is over already).
local function store(key, lives, frame)
    if lives == '0' then
        redis.call('SET', key, frame)
    elseif lives == '-1' then
        redis.call('UNLINK', key)
    else
        redis.call('SET', key, frame, 'PX', lives)
    end
end

