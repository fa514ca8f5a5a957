-- KEYS: meta, reply. ARGV: digest.
local saved = reply_to(KEYS[1], KEYS[2])
if not saved then return {'none'} end
if saved.digest ~= ARGV[1] then return {'request_id_reused'} end
return {'stored', saved.reply}
