-- KEYS: meta, snapshots, the live parts, the snapshot's parts. ARGV: save or restore, name, now, epoch, round, keep_rounds.
-- A script runs whole or not at all, so a copy is never half of one state and half of another.
local meta, names, parts = KEYS[1], KEYS[2], (#KEYS - 2) / 2
local action, name, now, asked = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local epoch = tonumber(redis.call('HGET', meta, 'epoch') or '0')
if redis.call('EXISTS', meta) == 0 then return {'run_not_found'} end
if asked >= 0 and asked < epoch then return {'fenced', tostring(epoch)} end
if action == 'restore' and redis.call('SISMEMBER', names, name) == 0 then return {'snapshot_not_found'} end

local kept = {}
for _, counter in ipairs({'incarnation', 'created_at', 'validation_counter'}) do
  kept[#kept + 1] = counter
  kept[#kept + 1] = redis.call('HGET', meta, counter) or '0'
end
for part = 1, parts do
  local live, saved = KEYS[2 + part], KEYS[2 + parts + part]
  local from, to = live, saved
  if action == 'restore' then from, to = saved, live end
  redis.call('DEL', to)
  redis.call('COPY', from, to)
end
if action == 'save' then
  redis.call('SADD', names, name)
else
  -- Versions of validation gradients are never used twice: replicas cache them by number. The epoch never goes back.
  redis.call('HSET', meta, 'epoch', math.max(epoch, asked), 'updated_at', now, unpack(kept))
  local round = redis.call('HINCRBY', meta, 'rounds', 1)
  redis.call('XADD', KEYS[2 + 5], 'MAXLEN', '~', ARGV[6], round .. '-0', 'round', ARGV[5])
end
return {'ok'}
