-- KEYS: meta, reply, problems, unsorted, validations, rounds, moments, beliefs.
-- ARGV[2]: a row for each problem; ARGV[3]: the ids, in the order of the rows, a msgpack array; ARGV[4]: moments to add
-- to the run's, doubles, or nothing; ARGV[5]: successes and failures of each problem, doubles, or nothing.
-- All values are read, computed and only then written, within this script: concurrent writers lose nothing, and a
-- failure leaves nothing half-written.
local problems_key, unsorted_key, validations_key, rounds_key = KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local moments_key, moments = KEYS[7], ARGV[4]
local beliefs_key, observed = KEYS[8], ARGV[5]
local ROW = '<ffdfBB'
local ROW_SIZE = struct.size(ROW)
local COUNTS, BELIEF = '<dd', '<ddd' -- beliefs.py has the same layout
local COUNTS_SIZE = struct.size(COUNTS)

if request.validation_version > 0 and
  redis.call('HEXISTS', validations_key, whole(request.validation_version)) == 0 then
  return {'validation_gone'}
end

local kind = field('alignment_kind')
if request.alignment_kind ~= '' and kind and kind ~= request.alignment_kind then
  return {'alignment_kind_mismatch', kind}
end

if moments ~= '' then
  local held = redis.call('GET', moments_key)
  if held and #held ~= #moments then return {'features_mismatch', whole(#held)} end
  local sums = {}
  for at = 1, held and #held or 0, 8 do
    local old, new = struct.unpack('<d', held, at), struct.unpack('<d', moments, at)
    sums[#sums + 1] = struct.pack('<d', old * request.moments_kept + new)
  end
  if held then moments = table.concat(sums) end
end

local ids = cmsgpack.unpack(ARGV[3])
local records, writes, fresh = read_records(problems_key, ids), {}, 0
for i = 1, #ids do
  local alignment, evidence, priority, pass_rate, signal, selected =
    struct.unpack(ROW, ARGV[2], (i - 1) * ROW_SIZE + 1)
  local sum, weight, selected_version, scored, picked, earlier = 0, 0, -1, 0, 0, ''
  local record = records[i]
  if record then
    local a, _, r, s, w, v, sv, ts, tp = struct.unpack(HEAD, record)
    sum, weight, selected_version, scored, picked = s, w, sv, ts, tp
    if pass_rate ~= pass_rate then pass_rate = r end
    if scored > 0 then
      local skip = #record - HEAD_SIZE >= KEEP_ENTRIES * ENTRY_SIZE and ENTRY_SIZE or 0
      earlier = string.sub(record, HEAD_SIZE + skip + 1)
        .. struct.pack(ENTRY, math.min(request.policy_version - v, FARTHEST), a)
    end
  end
  if signal == 1 and evidence == evidence then
    sum = sum * request.evidence_kept + request.strength * evidence
    weight = weight * request.evidence_kept + request.strength * request.strength
  end
  if selected == 1 then picked, selected_version = picked + 1, request.policy_version end
  writes[2 * i - 1] = ids[i]
  writes[2 * i] = struct.pack(HEAD, alignment, priority, pass_rate, sum, weight, request.policy_version,
    selected_version, scored + 1, picked) .. earlier
  if scored == 0 then fresh = fresh + 1 end
end

local beliefs = {}
if observed ~= '' then
  for i, belief in ipairs(read_records(beliefs_key, ids)) do
    local successes, failures = struct.unpack(COUNTS, observed, (i - 1) * COUNTS_SIZE + 1)
    if belief then
      local s, f = struct.unpack(BELIEF, belief)
      successes, failures = s * request.belief_kept + successes, f * request.belief_kept + failures
    end
    beliefs[2 * i - 1] = ids[i]
    beliefs[2 * i] = struct.pack(BELIEF, successes, failures, request.policy_version)
  end
end

begin()
if request.strategy ~= '' then redis.call('HSET', meta, 'strategy', request.strategy) end
if request.reliability >= 0 then redis.call('HSET', meta, 'reliability', exact(request.reliability)) end
if request.rollout_reliability >= 0 then
  local earlier = tonumber(field('mean_reliability') or request.rollout_reliability)
  local mean = earlier + request.recent_share * (request.rollout_reliability - earlier)
  redis.call('HSET', meta, 'rollout_reliability', exact(request.rollout_reliability), 'mean_reliability', exact(mean))
end
if request.alignment_kind ~= '' then redis.call('HSET', meta, 'alignment_kind', request.alignment_kind) end
for _, spread in ipairs({'spread', 'scatter'}) do
  -- Discounted sums over the run's alignments: their mean and spread. A request without evidence ages nothing.
  if request[spread .. '_weight'] > 0 then
    for _, part in ipairs({'_weight', '_sum', '_square'}) do
      local name = spread .. part
      redis.call('HSET', meta, name, exact(tonumber(field(name) or '0') * request.discount + request[name]))
    end
  end
end
if moments ~= '' then redis.call('SET', moments_key, moments) end
write_pairs('HSET', problems_key, writes)
if observed ~= '' then
  write_pairs('HSET', beliefs_key, beliefs)
  redis.call('HSET', meta, 'keeps_beliefs', '1')
end
if fresh > 0 then redis.call('HINCRBY', meta, 'problems', fresh) end
if #ids > 0 then redis.call('RPUSH', unsorted_key, ARGV[3]) end
return finish(rounds_key)
