-- A problem's record; problems.py has the same layout: alignment, priority, pass_rate, evidence_sum, evidence_weight,
-- policy_version, selected_version, times_scored, times_selected, then the scores before the last.
local HEAD, ENTRY, KEEP_ENTRIES = '<fffffddI4I4', '<I6f', 5
local HEAD_SIZE, ENTRY_SIZE = struct.size(HEAD), 10
local FARTHEST = 2 ^ 48 - 1
local NAN = 0 / 0
local CHUNK = 1000 -- Lua's stack holds about 8000 arguments

local function chunks(count, act)
  for first = 1, count, CHUNK do act(first, math.min(first + CHUNK - 1, count)) end
end

-- Records by position, false where there is none.
local function read_records(key, ids)
  local records = {}
  chunks(#ids, function(first, last)
    local part = redis.call('HMGET', key, unpack(ids, first, last))
    for i = first, last do records[i] = part[i - first + 1] end
  end)
  return records
end

-- Writes pairs laid out flat: field, value, field, value; or score, member for a sorted set.
local function write_pairs(command, key, pairs_)
  chunks(#pairs_ / 2, function(first, last) redis.call(command, key, unpack(pairs_, 2 * first - 1, 2 * last)) end)
end
