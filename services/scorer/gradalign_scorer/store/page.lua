-- KEYS: meta, priorities, problems. ARGV: limit, then score and id of the last problem of the page before, if any.
-- The place behind that problem is found by its score and id, so it need not stand there any more.
local meta, priorities, problems = KEYS[1], KEYS[2], KEYS[3]
local limit, score, id = tonumber(ARGV[1]), ARGV[2], ARGV[3]
if redis.call('EXISTS', meta) == 0 then return {'run_not_found'} end

-- By bytes, as the sorted set orders ties; Lua's own comparison follows the locale.
local function behind(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x > y end
  end
  return #a > #b
end

local start = 0
if score then
  local low = redis.call('ZCOUNT', priorities, '-inf', '(' .. score)
  local high = redis.call('ZCOUNT', priorities, '-inf', score)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if behind(redis.call('ZRANGE', priorities, middle, middle)[1], id) then high = middle else low = middle + 1 end
  end
  start = low
end

local found = redis.call('ZRANGE', priorities, start, start + limit - 1, 'WITHSCORES')
local reply = {'ok', start + limit < redis.call('ZCARD', priorities) and 'more' or 'end'}
for i = 1, #found, 2 do
  reply[#reply + 1] = found[i]
  reply[#reply + 1] = found[i + 1]
  reply[#reply + 1] = redis.call('HGET', problems, found[i])
end
return reply
