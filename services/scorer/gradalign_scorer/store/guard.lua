-- What every commit begins with: the stored reply of a repeated request, then fencing, then the policy's clock.
-- KEYS[1] meta, KEYS[2] reply. ARGV[1]: msgpack map with request_id, digest, epoch, policy_version, now.
local meta, reply_key = KEYS[1], KEYS[2]
local request = cmsgpack.unpack(ARGV[1])

local function field(name) return redis.call('HGET', meta, name) end

local incarnation = field('incarnation')
if not incarnation then
  incarnation = request.incarnation
end

if request.request_id ~= '' then
  local stored = redis.call('GET', reply_key)
  if stored then
    local saved = cmsgpack.unpack(stored)
    if saved.incarnation == incarnation then
      if saved.digest ~= request.digest then return {'request_id_reused'} end
      return {'stored', saved.reply}
    end
  end
end

local epoch = tonumber(field('epoch') or '0')
if request.epoch >= 0 and request.epoch < epoch then return {'fenced', tostring(epoch)} end

local policy_version = tonumber(field('policy_version') or '-1')
if request.policy_version < policy_version then
  return {'stale_policy', string.format('%.0f', policy_version)}
end

local projection = field('projection_id')
if request.projection_id ~= '' and projection and projection ~= request.projection_id then
  return {'projection_mismatch', field('projection')}
end

-- From here on the commit cannot be refused but by its own checks, which come before the first write.
local function begin()
  redis.call('HSETNX', meta, 'incarnation', incarnation)
  redis.call('HSETNX', meta, 'created_at', request.now)
  if request.projection_id ~= '' then
    redis.call('HSET', meta, 'projection_id', request.projection_id, 'projection', request.projection)
  end
  redis.call('HSET', meta, 'epoch', string.format('%.0f', math.max(epoch, request.epoch)),
    'policy_version', string.format('%.0f', request.policy_version), 'updated_at', request.now)
end

local function finish(rounds_key)
  local round = redis.call('HINCRBY', meta, 'rounds', 1)
  redis.call('XADD', rounds_key, 'MAXLEN', '~', request.keep_rounds, round .. '-0', 'round', request.round)
  if request.request_id ~= '' then
    local saved = {incarnation = incarnation, digest = request.digest, reply = request.reply}
    redis.call('SET', reply_key, cmsgpack.pack(saved), 'EX', request.reply_seconds)
  end
  return {'ok', tostring(round)}
end

local function chunks(count, size, act)
  for first = 1, count, size do act(first, math.min(first + size - 1, count)) end
end

-- A problem's record; records.py has the same layout.
local HEAD, HISTORY, KEEP_HISTORY = '<ffffffddI4I4', '<df', 5
local HEAD_SIZE, HISTORY_SIZE = struct.size(HEAD), struct.size(HISTORY)
local NAN = 0 / 0
