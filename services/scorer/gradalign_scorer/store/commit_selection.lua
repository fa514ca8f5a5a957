-- KEYS: meta, reply, problems, rounds. ARGV[1]: the request map.
-- A problem picked before it was ever scored gets a record without a score, so that its cool-down is kept.
local problems_key, rounds_key = KEYS[3], KEYS[4]
if not field('incarnation') then return {'not_found'} end
begin()
local ids = request.ids
chunks(#ids, 1000, function(first, last)
  local old = redis.call('HMGET', problems_key, unpack(ids, first, last))
  local writes = {}
  for i = first, last do
    local record = old[i - first + 1]
    if not record then record = struct.pack(HEAD, NAN, NAN, NAN, NAN, 0, 0, -1, -1, 0, 0) end
    local a, p, n, r, s, w, v, sv, ts, tp = struct.unpack(HEAD, record)
    writes[#writes + 1] = ids[i]
    writes[#writes + 1] = struct.pack(HEAD, a, p, n, r, s, w, v, request.policy_version, ts, tp + 1)
      .. string.sub(record, HEAD_SIZE + 1)
  end
  redis.call('HSET', problems_key, unpack(writes))
end)
return finish(rounds_key)
