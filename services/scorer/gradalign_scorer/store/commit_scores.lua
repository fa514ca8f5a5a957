-- KEYS: meta, reply, problems, priorities, rounds. ARGV[1]: the request map; its columns run parallel to ids.
-- Every value is read, changed and written within this script, so concurrent writers lose nothing.
local problems_key, priorities_key, rounds_key = KEYS[3], KEYS[4], KEYS[5]
if request.validation_version > tonumber(field('validation_counter') or '0') then
  return {'validation_gone'}
end
begin()
if request.named_strategy ~= '' then redis.call('HSET', meta, 'strategy', request.named_strategy) end
if request.reliability >= 0 then redis.call('HSET', meta, 'reliability', request.reliability) end

-- Discounted moments of the run's alignments: its mean and spread.
for _, name in ipairs({'spread_weight', 'spread_sum', 'spread_square'}) do
  local old = tonumber(field(name) or '0')
  redis.call('HSET', meta, name, string.format('%.17g', old * request.discount + request[name]))
end

local ids = request.ids
chunks(#ids, 1000, function(first, last)
  local old = redis.call('HMGET', problems_key, unpack(ids, first, last))
  local writes, ranks = {}, {}
  for i = first, last do
    local alignment, pass_rate, selected = request.alignments[i], request.pass_rates[i], request.selected[i]
    local sum, weight, selected_version, scored, picked, history = 0, 0, -1, 0, 0, ''
    local record = old[i - first + 1]
    if record then
      local a, p, n, r, s, w, v, sv, ts, tp = struct.unpack(HEAD, record)
      sum, weight, selected_version, scored, picked = s, w, sv, ts, tp
      history = string.sub(record, HEAD_SIZE + 1)
      if pass_rate < 0 then pass_rate = r end
    elseif pass_rate < 0 then
      pass_rate = NAN
    end
    if alignment == alignment and request.signal[i] == 1 then
      sum, weight = sum * request.discount + alignment, weight * request.discount + 1
    end
    if selected == 1 then picked, selected_version = picked + 1, request.policy_version end
    history = history .. struct.pack(HISTORY, request.policy_version, alignment)
    if #history > KEEP_HISTORY * HISTORY_SIZE then history = string.sub(history, HISTORY_SIZE + 1) end
    writes[#writes + 1] = ids[i]
    writes[#writes + 1] = struct.pack(HEAD, alignment, request.priorities[i], request.norms[i], pass_rate, sum, weight,
      request.policy_version, selected_version, scored + 1, picked) .. history
    ranks[#ranks + 1] = string.format('%.17g', -request.priorities[i])
    ranks[#ranks + 1] = ids[i]
  end
  redis.call('HSET', problems_key, unpack(writes))
  redis.call('ZADD', priorities_key, unpack(ranks))
end)
return finish(rounds_key)
