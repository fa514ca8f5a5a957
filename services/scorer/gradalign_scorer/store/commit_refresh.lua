-- KEYS: meta, reply, validations, rounds. ARGV[1]: the request map; ARGV[2]: the packed validation gradient.
-- A version is written once, under a number that was never used before; the flip is the last write.
local validations_key, rounds_key = KEYS[3], KEYS[4]
local version = tonumber(field('validation_counter') or '0') + 1
if version ~= request.validation_version then return {'version_taken'} end
begin()
redis.call('HSET', validations_key, version, ARGV[2])
local current = field('validation_version')
for _, old in ipairs(redis.call('HKEYS', validations_key)) do
  if tonumber(old) <= version - request.keep_validations and old ~= current then
    redis.call('HDEL', validations_key, old)
  end
end
redis.call('HSET', meta, 'validation_counter', version, 'validation_version', version,
  'validation_policy_version', string.format('%.0f', request.policy_version),
  'validation_problems', request.validation_problems, 'coherence', string.format('%.17g', request.coherence))
return finish(rounds_key)
