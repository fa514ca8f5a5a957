-- KEYS: meta, reply, validations, rounds. ARGV[2]: the packed validation gradient.
-- A version is written once, under a number that was never used before, and the flip to it is one write.
local validations_key, rounds_key = KEYS[3], KEYS[4]
local version = tonumber(field('validation_counter') or '0') + 1
if version ~= request.validation_version then return {'version_taken'} end
-- A restore changes which version is current, and not the number of the next.
if request.validation_base >= 0 and tonumber(field('validation_version') or '0') ~= request.validation_base then
  return {'version_taken'}
end
begin()
redis.call('HSET', validations_key, whole(version), ARGV[2])
for _, old in ipairs(redis.call('HKEYS', validations_key)) do
  if tonumber(old) <= version - request.keep_validations then redis.call('HDEL', validations_key, old) end
end
redis.call('HSET', meta, 'validation_counter', whole(version), 'validation_version', whole(version),
  'validation_policy_version', whole(request.policy_version),
  'validation_problems', whole(request.validation_problems))
for _, name in ipairs({'coherence', 'products_quotient'}) do
  if request[name] >= 0 then redis.call('HSET', meta, name, exact(request[name])) else redis.call('HDEL', meta, name) end
end
-- The mean cosine between two validation problems, over the last few refreshes: one alone is a noisy estimate.
local problems, coherence = request.validation_problems, request.coherence
if problems > 1 and coherence >= 0 then
  local cosine = math.max(0, (problems * coherence * coherence - 1) / (problems - 1))
  local earlier = tonumber(field('likeness') or cosine)
  redis.call('HSET', meta, 'likeness', exact(earlier + request.recent_share * (cosine - earlier)))
end
return finish(rounds_key)
