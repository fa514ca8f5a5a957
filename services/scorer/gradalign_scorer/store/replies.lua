-- A stored reply, or nil where there is none: never stored, of a deleted run of the same name, or undone by a restore.
local function reply_to(meta, reply_key)
  local packed = redis.call('GET', reply_key)
  if not packed then return nil end
  local saved = cmsgpack.unpack(packed)
  if saved.incarnation ~= redis.call('HGET', meta, 'incarnation') then return nil end
  for _, span in ipairs(cjson.decode(redis.call('HGET', meta, 'undone') or '[]')) do
    if saved.serial > span[1] and saved.serial <= span[2] then return nil end
  end
  return saved
end
