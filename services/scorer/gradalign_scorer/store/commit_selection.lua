-- KEYS: meta, reply, problems, rounds. ARGV from 2: the ids.
-- A problem picked before it was ever scored gets a record without a score, so that its cool-down is kept.
local problems_key, rounds_key = KEYS[3], KEYS[4]
if not field('incarnation') then return {'not_found'} end

local ids = {}
for i = 2, #ARGV do ids[i - 1] = ARGV[i] end
local records, writes = read_records(problems_key, ids), {}
for i = 1, #ids do
  local record = records[i] or struct.pack(HEAD, NAN, NAN, NAN, 0, 0, -1, -1, 0, 0)
  local a, p, r, s, w, v, _, ts, tp = struct.unpack(HEAD, record)
  writes[2 * i - 1] = ids[i]
  writes[2 * i] = struct.pack(HEAD, a, p, r, s, w, v, request.policy_version, ts, tp + 1)
    .. string.sub(record, HEAD_SIZE + 1)
end

begin()
write_pairs('HSET', problems_key, writes)
return finish(rounds_key)
