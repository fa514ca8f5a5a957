-- KEYS: meta, snapshots, then every other key of the run. ARGV: epoch.
local asked = tonumber(ARGV[1])
local epoch = tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0')
if redis.call('EXISTS', KEYS[1]) == 0 then return {'run_not_found'} end
if asked >= 0 and asked < epoch then return {'fenced', tostring(epoch)} end
for _, key in ipairs(KEYS) do redis.call('UNLINK', key) end
return {'ok'}
