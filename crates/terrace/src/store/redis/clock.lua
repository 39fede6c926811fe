-- The time of day in milliseconds: what callers tell, or the server's own if that is 0.
local function clock(told)
    if told ~= 0 then
        return told
    end
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- For how long the server keeps what lasts so many milliseconds: whoever tells the time decides when
-- it is over.
local function keeps(told, lasts)
    return told == 0 and lasts or lasts + 60000
end

