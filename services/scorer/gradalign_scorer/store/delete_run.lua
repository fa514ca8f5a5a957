-- KEYS: meta, snapshots, then every other key of the run. ARGV: epoch, then the names of the snapshots among KEYS.
local asked = tonumber(ARGV[1])
if redis.call('EXISTS', KEYS[1]) == 0 then return {'run_not_found'} end
local epoch = tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0')
if asked >= 0 and asked < epoch then return {'fenced', string.format('%.0f', epoch)} end

local known = {}
for i = 2, #ARGV do known[ARGV[i]] = true end
for _, name in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  if not known[name] then return {'snapshot_added'} end
end
redis.call('UNLINK', unpack(KEYS))
return {'ok'}
