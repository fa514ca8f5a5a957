-- What every commit begins with: fencing, then the stored reply of a repeated request, then the checks it shares.
-- KEYS: meta, reply, then the commit's own. ARGV[1]: the request, a msgpack map.
local meta, reply_key = KEYS[1], KEYS[2]
local request = cmsgpack.unpack(ARGV[1])

local function field(name) return redis.call('HGET', meta, name) end
local function whole(number) return string.format('%.0f', number) end
local function exact(number) return string.format('%.17g', number) end

local epoch = tonumber(field('epoch') or '0')
if request.epoch >= 0 and request.epoch < epoch then return {'fenced', whole(epoch)} end

if request.request_id ~= '' then
  local saved = reply_to(meta, reply_key)
  if saved then
    if saved.digest ~= request.digest then return {'request_id_reused'} end
    return {'stored', saved.reply}
  end
end

local policy_version = tonumber(field('policy_version') or '-1')
if request.policy_version < policy_version then return {'stale_policy', whole(policy_version)} end

local projection = field('projection_id')
if request.projection_id ~= '' and projection and projection ~= request.projection_id then
  return {'projection_mismatch', field('projection'), projection}
end

-- Called behind the commit's own checks and before its first write: from here on nothing is refused.
local function begin()
  redis.call('HSETNX', meta, 'incarnation', request.incarnation)
  redis.call('HSETNX', meta, 'created_at', exact(request.now))
  if request.projection_id ~= '' then
    redis.call('HSET', meta, 'projection_id', request.projection_id, 'projection', request.projection)
  end
  redis.call('HSET', meta, 'epoch', whole(math.max(epoch, request.epoch)),
    'policy_version', whole(request.policy_version), 'updated_at', exact(request.now))
end

-- The commit's last writes: its round and its reply. `serial` counts commits and, unlike `rounds`, never goes back.
local function finish(rounds_key)
  local round = redis.call('HINCRBY', meta, 'rounds', 1)
  local serial = redis.call('HINCRBY', meta, 'serial', 1)
  redis.call('XADD', rounds_key, 'MAXLEN', '~', whole(request.keep_rounds), round .. '-0', 'round', request.round)
  if request.request_id ~= '' then
    local saved = {incarnation = field('incarnation'), serial = serial, digest = request.digest, reply = request.reply}
    redis.call('SET', reply_key, cmsgpack.pack(saved), 'EX', whole(request.reply_ttl))
  end
  return {'ok', whole(serial)}
end
