-- KEYS: problems, priorities, unsorted. Puts the problems of the oldest commit that waits for it in their places.
-- Records are the truth: a commit that is put in place late, or twice, leaves the order of the newest.
local problems_key, priorities_key, unsorted_key = KEYS[1], KEYS[2], KEYS[3]
local packed = redis.call('LPOP', unsorted_key)
if not packed then return {'ok', '0'} end

local ids, ranks = cmsgpack.unpack(packed), {}
for i, record in ipairs(read_records(problems_key, ids)) do
  local _, priority = struct.unpack(HEAD, record)
  ranks[2 * i - 1] = string.format('%.9g', -priority)
  ranks[2 * i] = ids[i]
end
write_pairs('ZADD', priorities_key, ranks)
return {'ok', tostring(redis.call('LLEN', unsorted_key))}
