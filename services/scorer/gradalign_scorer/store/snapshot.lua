-- KEYS: meta, snapshots, the live parts, the snapshot's parts (keys.py has their order).
-- ARGV: save or restore, name, now, epoch, round, keep_rounds, reply_ttl.
-- A script runs whole or not at all, in memory as in the log on disk, so a copy is never half of one state.
local meta, names, parts = KEYS[1], KEYS[2], (#KEYS - 2) / 2
local action, name, now, asked = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local function field(of) return redis.call('HGET', meta, of) end

if redis.call('EXISTS', meta) == 0 then return {'run_not_found'} end
local epoch = tonumber(field('epoch') or '0')
if asked >= 0 and asked < epoch then return {'fenced', string.format('%.0f', epoch)} end
if action == 'restore' and redis.call('SISMEMBER', names, name) == 0 then return {'snapshot_not_found'} end

-- What no restore takes back. Versions of validation gradients are never used twice: replicas cache them by number.
local kept = {'epoch', string.format('%.0f', math.max(epoch, asked))}
for _, of in ipairs({'incarnation', 'created_at', 'validation_counter', 'serial'}) do
  local value = field(of)
  if value then
    kept[#kept + 1] = of
    kept[#kept + 1] = value
  end
end
local serial, undone = tonumber(field('serial')), cjson.decode(field('undone') or '[]')

for part = 1, parts do
  local live, saved = KEYS[2 + part], KEYS[2 + parts + part]
  if action == 'save' then
    redis.call('UNLINK', saved)
    redis.call('COPY', live, saved)
  else
    redis.call('UNLINK', live)
    redis.call('COPY', saved, live)
  end
end

if action == 'save' then
  redis.call('SADD', names, name)
  redis.call('HSET', meta, unpack(kept, 1, 2))
  return {'ok'}
end

-- Replies to the requests that this restore undoes are forgotten: sent again, they are applied again.
local restored, spans = tonumber(field('serial')), {}
for _, span in ipairs(undone) do
  if span[1] < restored and now - span[3] < tonumber(ARGV[7]) then spans[#spans + 1] = span end
end
if serial > restored then spans[#spans + 1] = {restored, serial, math.floor(now)} end
redis.call('HSET', meta, 'updated_at', string.format('%.17g', now), 'undone', #spans > 0 and cjson.encode(spans) or '[]',
  unpack(kept))
local round = redis.call('HINCRBY', meta, 'rounds', 1)
redis.call('XADD', KEYS[7], 'MAXLEN', '~', ARGV[6], round .. '-0', 'round', ARGV[5])
return {'ok'}
