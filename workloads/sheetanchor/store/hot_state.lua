#!lua name=sheetanchor
-- The hot state of one symbol: who may write it (term), which rebuild it belongs to (epoch), and every operation that
-- touches more than one key. Works on Redis >= 7.0 and Valkey >= 8.
--
-- Two rules hold for every function that writes:
--   1. All checks (arguments, key types, the caller's permissions, fences) come before the first write, so that no call
--      leaves only some of its writes. A function that needs memory has no `allow-oom` flag: under memory pressure the
--      server refuses it as a whole.
--   2. Every time is the server's clock, never the caller's.
--
-- A function whose arguments have changed has a new name (`apply2`). The old name does the same for processes of the
-- previous version, which call this library during a roll-out. A failover that loses acknowledged writes can make an
-- epoch number be used twice; a receipt is never used twice. A caller that builds on a state therefore names both.

local VERSION = 3

local TRADES_TTL_S = 300
local FEATURES_TTL_S = 120
local STAGING_TTL_S = 600
local PREDICTION_TTL_S = 120
local TAKEOVER_AFTER_US = 1000000
local SLOT_US = 2000000
-- A swapped state counts as sound for this long, which is also how long a writer may be silent before readers doubt it.
local SWAP_SOUND_FOR_US = 2000000
-- Replicas that are degraded for reasons of their own wait 600 ms; this limit is 100 ms lower to allow for clock error.
local OWN_DEGRADED_NOT_BEFORE_US = 500000
-- At most two slots are open, and each is committed once, so a slot's entry is among the last three of the stream.
-- The other five are a margin for a server clock that was set back.
local SLOTS_LOOKED_BACK = 8
-- `unpack` puts its values on Lua's C stack, which holds about 8000; a hot hash has fewer than 60 fields.
local VALUES_MAX = 1024
local INTEGER_MAX = 9007199254740992 -- 2^53: above it a double cannot represent every integer
-- A state is restated only if the lines were read this recently, and if its last market event is no older than readers
-- accept.
local RESTATE_READ_MAX_US = 1000000
local RESTATE_STAMP_MAX_US = 5000000
-- Matches every receipt: callers of the previous version name none.
local ANY_RECEIPT = '*'
-- A doubt that says only that a failover lost acknowledged writes; a doubt of any other kind replaces it.
local FAILOVER_DOUBT = '^failover:'
-- The doubt of an anchor that has never held a state.
local NOTHING_DOUBT = 'nothing'

local function fail(message)
  error({err = message})
end

local function now_us()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local function text(number)
  return string.format('%.0f', number)
end

local function integer(value, name)
  local number = value and string.match(value, '^%d+$') and tonumber(value)
  if not number or number >= INTEGER_MAX then
    fail('ERR ' .. name .. ': expected an integer from 0 to 2^53, found ' .. tostring(value))
  end
  return number
end

local function check_counts(keys, key_count, args, args_min)
  if #keys ~= key_count or #args < args_min then
    fail('ERR expected ' .. key_count .. ' keys and at least ' .. args_min .. ' arguments, found ' ..
      #keys .. ' and ' .. #args)
  end
end

-- Fails unless each key is absent or of its type. The arguments are pairs of key and type.
local function check_types(...)
  local pairs_given = {...}
  for i = 1, #pairs_given, 2 do
    local found = redis.call('TYPE', pairs_given[i]).ok
    if found ~= 'none' and found ~= pairs_given[i + 1] then
      fail('WRONGTYPE ' .. pairs_given[i] .. ': expected a ' .. pairs_given[i + 1] .. ', found a ' .. found)
    end
  end
end

-- Functions run with the caller's permissions: without this check a swap by a user that may HSET but not RENAME would
-- stop in the middle.
local function check_permissions(commands)
  for _, command in ipairs(commands) do
    if not redis.acl_check_cmd(unpack(command)) then
      fail('NOPERM this user may not run ' .. command[1] .. ' on ' .. tostring(command[2]))
    end
  end
end

local function read_anchor(key)
  local values = redis.call('HMGET', key, 'epoch', 'term', 'writer', 'state', 'update_id', 'suspect_id', 'suspect_by',
    'beat_us', 'receipt', 'root', 'doubt', 'dataset', 'trade_id', 'unvalidated')
  return {
    epoch = tonumber(values[1]) or 0,
    term = tonumber(values[2]) or 0,
    writer = values[3] or '',
    state = values[4] or 'suspect',
    update_id = tonumber(values[5]) or 0,
    suspect_id = tonumber(values[6]) or 0,
    suspect_by = values[7] or '',
    beat_us = tonumber(values[8]) or 0,
    receipt = values[9] or '',
    root = values[10] or '',
    doubt = values[11] or '',
    dataset = values[12] or '',
    trade_id = tonumber(values[13]) or 0,
    unvalidated = tonumber(values[14]) or 0,
    absent = not values[1] and not values[2] and not values[4],
  }
end

local function reply(status, anchor, now, detail)
  return {status, anchor.epoch, anchor.term, anchor.writer, anchor.state, now, detail or '', anchor.receipt, anchor.root,
    anchor.doubt}
end

-- Returns the id of the server's replication history, '' if the caller may not run INFO.
local function replication_id()
  local info = redis.pcall('INFO', 'replication')
  if type(info) ~= 'string' then
    return ''
  end
  return string.match(info, 'master_replid:(%x+)') or ''
end

-- Returns whether the stored state has the epoch and receipt that the caller builds on.
local function builds_on(anchor, epoch, receipt)
  return anchor.epoch == epoch and (receipt == ANY_RECEIPT or anchor.receipt == receipt)
end

-- Returns the arguments of a call of the previous version in the order of the present one: those up to `last`, then the
-- added ones, then the rest.
local function with_added(args, last, added)
  local result = {}
  for i = 1, last do
    table.insert(result, args[i] or '')
  end
  for _, value in ipairs(added) do
    table.insert(result, value)
  end
  for i = last + 1, #args do
    table.insert(result, args[i])
  end
  return result
end

-- Returns where each flat field list is in the arguments; their lengths begin at index `counts_at`.
local function field_lists(args, counts_at, first)
  local lists = {}
  for i = 1, 4 do
    local count = integer(args[counts_at + i - 1], 'length of list ' .. i)
    if count % 2 ~= 0 or count > VALUES_MAX then
      fail('ERR length of list ' .. i .. ': expected an even number up to ' .. VALUES_MAX .. ', found ' .. count)
    end
    lists[i] = {first = first, count = count}
    first = first + count
  end
  if first - 1 ~= #args then
    fail('ERR field lists: expected ' .. (first - 1) .. ' arguments, found ' .. #args)
  end
  return lists
end

-- A hash is replaced as a whole: a field that the new one lacks (for example a tenth level) must not remain.
-- `epoch` is the last field, so that a field of that name among the caller's cannot override it.
local function replace_hash(key, args, list, ttl_s, epoch)
  local values = {unpack(args, list.first, list.first + list.count - 1)}
  if epoch then
    values[list.count + 1], values[list.count + 2] = 'epoch', epoch
  end
  redis.call('DEL', key)
  redis.call('HSET', key, unpack(values))
  if ttl_s then
    redis.call('EXPIRE', key, ttl_s)
  end
end

local function version(keys, args)
  return VERSION
end

-- Removes the clause `vouch sound_until_us sound_for_us unsound` from the arguments if it begins at index `at`.
local function take_vouch(args, at)
  if args[at] ~= 'vouch' then
    return args, nil
  end
  local vouch = {
    until_us = integer(args[at + 1], 'sound_until_us'), for_us = integer(args[at + 2], 'sound_for_us'),
    unsound = args[at + 3] or fail('ERR vouch: expected three arguments'),
  }
  local rest = {}
  for i = 1, #args do
    if i < at or i > at + 3 then
      table.insert(rest, args[i])
    end
  end
  return rest, vouch
end

-- KEYS anchor ob tr:1s tr:5s feat book
-- ARGV term writer epoch receipt acked_us update_id trade_id stamp_us [vouch sound_until_us sound_for_us unsound] n_ob
-- n_tr_1s n_tr_5s n_feat book, then the four flat field lists. Without `vouch` the state has no `sound_until_us`, and
-- readers treat it as unsound. `acked_us` is the last heartbeat that the server acknowledged to this writer, 0 for none.
local function apply2(keys, args)
  local vouch
  args, vouch = take_vouch(args, 9)
  check_counts(keys, 6, args, 13)
  local term, epoch, acked_us = integer(args[1], 'term'), integer(args[3], 'epoch'), integer(args[5], 'acked_us')
  local update_id, stamp_us = integer(args[6], 'update_id'), integer(args[8], 'stamp_us')
  integer(args[7], 'trade_id')
  local lists = field_lists(args, 9, 14)
  local book = args[13]
  -- The other keys are replaced as a whole, so a key of a wrong type there is overwritten.
  check_types(keys[1], 'hash')
  local anchor, now = read_anchor(keys[1]), now_us()
  if anchor.term ~= term or anchor.writer ~= args[2] or term == 0 then
    return reply('FENCED', anchor, now)
  end
  -- Replication is one ordered stream: a server that holds the last acknowledged write holds every earlier one too.
  if anchor.beat_us < acked_us then
    return reply('ROLLED_BACK', anchor, now, 'beat_us ' .. text(anchor.beat_us) .. ' is below ' .. args[5])
  end
  if not builds_on(anchor, epoch, args[4]) then
    return reply('EPOCH', anchor, now)
  end
  if update_id < anchor.update_id then
    return reply('BEHIND', anchor, now, 'update_id ' .. args[6] .. ' is below ' .. text(anchor.update_id))
  end
  local permissions = {{'HSET', keys[1], 'beat_us', '0'}, {'HDEL', keys[1], 'unsound'}}
  for i = 1, 4 do
    if lists[i].count > 0 then
      table.insert(permissions, {'DEL', keys[i + 1]})
      table.insert(permissions, {'HSET', keys[i + 1], 'epoch', '0'})
      table.insert(permissions, {'EXPIRE', keys[i + 1], '1'})
    end
  end
  -- `book` is not written while the state is suspect: a processor that starts must not load a book that may be wrong.
  local writes_book = book ~= '' and anchor.state == 'anchored'
  if writes_book then
    table.insert(permissions, {'SET', keys[6], ''})
  end
  check_permissions(permissions)

  local ttls = {false, TRADES_TTL_S, TRADES_TTL_S, FEATURES_TTL_S}
  for i = 1, 4 do
    if lists[i].count > 0 then
      replace_hash(keys[i + 1], args, lists[i], ttls[i], args[3])
    end
  end
  if writes_book then
    redis.call('SET', keys[6], book)
  end
  local standing = {'beat_us', text(now)}
  if stamp_us > 0 then
    table.insert(standing, 'stamp_us')
    table.insert(standing, args[8])
  end
  if lists[1].count > 0 then
    table.insert(standing, 'update_id')
    table.insert(standing, args[6])
    table.insert(standing, 'trade_id')
    table.insert(standing, args[7])
  end
  if vouch then
    -- The writer's estimate of this clock may be wrong, or the call may have been delayed: the earlier bound applies.
    table.insert(standing, 'sound_until_us')
    table.insert(standing, text(math.min(vouch.until_us, now + vouch.for_us)))
    table.insert(standing, 'unsound')
    table.insert(standing, vouch.unsound)
  else
    redis.call('HDEL', keys[1], 'sound_until_us', 'unsound')
  end
  redis.call('HSET', keys[1], unpack(standing))
  return reply('OK', anchor, now)
end

-- KEYS anchor ob tr:1s tr:5s feat book
-- ARGV term writer epoch update_id stamp_us [vouch ...], then as in apply2
local function apply(keys, args)
  check_counts(keys, 6, args, 10)
  local shifted = with_added(args, 4, {'0'})
  return apply2(keys, with_added(shifted, 3, {ANY_RECEIPT, '0'}))
end

-- KEYS anchor
-- ARGV term writer seen_term seen_writer force known_term dataset
local function take2(keys, args)
  check_counts(keys, 1, args, 7)
  local term, writer = integer(args[1], 'term'), args[2]
  local seen_term, force = integer(args[3], 'seen_term'), args[5] == '1'
  local known_term, dataset = integer(args[6], 'known_term'), args[7]
  if term == 0 or writer == '' then
    fail('ERR take: expected a term above 0 and a writer, found ' .. args[1] .. ' and "' .. writer .. '"')
  end
  check_types(keys[1], 'hash')
  local anchor, now = read_anchor(keys[1]), now_us()
  if anchor.term == term and anchor.writer == writer then
    -- Written again, so that a caller whose reply was lost can wait until replicas have it.
    check_permissions({{'HSET', keys[1], 'term', '0'}})
    redis.call('HSET', keys[1], 'beat_us', text(now))
    return reply('OK', anchor, now, 'held already')
  end
  if term <= anchor.term then
    return reply('TERM', anchor, now)
  end
  if not force then
    if anchor.term ~= seen_term or anchor.writer ~= args[4] then
      return reply('SEEN', anchor, now)
    end
    -- The absolute value, since a heartbeat far in the future was written before the server's clock was set back.
    local alive = math.abs(now - anchor.beat_us) <= TAKEOVER_AFTER_US
    -- A term above the stored one has existed, so a failover has lost writes, and the stored writer was replaced before.
    local rolled_back = known_term > anchor.term and (anchor.dataset == '' or anchor.dataset == dataset)
    if alive and not rolled_back and anchor.writer ~= '' and anchor.writer ~= writer then
      return reply('ALIVE', anchor, now)
    end
  end
  local fresh = redis.call('HEXISTS', keys[1], 'state') == 0
  check_permissions({{'HSET', keys[1], 'term', '0'}, {'HDEL', keys[1], 'suspect_id'}})

  redis.call('HSET', keys[1], 'term', args[1], 'writer', writer, 'beat_us', text(now))
  -- `suspect_id`, the update that a rebuild has to reach, was set by the previous writer. The new writer has read the
  -- lines too and sets its own.
  redis.call('HDEL', keys[1], 'suspect_id', 'suspect_by')
  if fresh then
    redis.call('HSET', keys[1], 'epoch', '0', 'state', 'suspect', 'reason', 'nothing anchored yet', 'suspect_at', text(now),
      'doubt', NOTHING_DOUBT)
    anchor.doubt = NOTHING_DOUBT
  end
  if anchor.dataset == '' and dataset ~= '' then
    redis.call('HSET', keys[1], 'dataset', dataset)
  end
  anchor.term, anchor.writer = term, writer
  return reply('OK', anchor, now)
end

-- KEYS anchor
-- ARGV term writer seen_term seen_writer force
local function take(keys, args)
  check_counts(keys, 1, args, 5)
  return take2(keys, with_added(args, 5, {'0', ''}))
end

-- Returns the doubt to store when another one is raised. A doubt of any other kind replaces the stored one. A failover's
-- doubt replaces only none, the one that its caller raised before (`replaces`), and that of an anchor that has never
-- held a state.
local function doubt_of(anchor, given, replaces)
  local stands = anchor.state == 'suspect' and not anchor.absent and anchor.doubt ~= NOTHING_DOUBT
  if stands and string.match(given, FAILOVER_DOUBT) and anchor.doubt ~= replaces then
    return anchor.doubt
  end
  return given
end

-- KEYS anchor
-- ARGV term writer epoch update_id reason doubt replaces; an empty writer with term 0 is an observer
local function suspect2(keys, args)
  check_counts(keys, 1, args, 7)
  local term, writer = integer(args[1], 'term'), args[2]
  local epoch, update_id = integer(args[3], 'epoch'), integer(args[4], 'update_id')
  local observer = term == 0 and writer == ''
  check_types(keys[1], 'hash')
  local anchor, now = read_anchor(keys[1]), now_us()
  if not observer and (anchor.term ~= term or anchor.writer ~= writer) then
    return reply('FENCED', anchor, now)
  end
  -- What an observer saw in an older rebuild says nothing about the present one. The writer is always accepted.
  if observer and epoch < anchor.epoch then
    return reply('EPOCH', anchor, now)
  end
  local suspect_at = redis.call('HGET', keys[1], 'suspect_at')
  check_permissions({{'HSET', keys[1], 'state', 'suspect'}})

  local epoch_now = math.max(anchor.epoch, epoch)
  -- Within one term and epoch `suspect_id` only rises; a new writer or epoch may follow a feed with lower ids.
  local suspect_by = observer and anchor.suspect_by or text(term) .. ':' .. text(epoch_now)
  local suspect_id = update_id
  if anchor.state == 'suspect' and suspect_by == anchor.suspect_by then
    suspect_id = math.max(anchor.suspect_id, update_id)
  end
  if anchor.state ~= 'suspect' or not suspect_at then
    suspect_at = text(now)
  end
  local doubt = doubt_of(anchor, args[6], args[7])
  redis.call('HSET', keys[1], 'epoch', text(epoch_now), 'state', 'suspect', 'reason', args[5], 'suspect_id',
    text(suspect_id), 'suspect_by', suspect_by, 'suspect_at', suspect_at, 'doubt', doubt)
  if not observer then
    -- The writer takes this reply as an acknowledged heartbeat: if a failover loses the doubt, its next write shows it.
    redis.call('HSET', keys[1], 'beat_us', text(now))
  end
  anchor.epoch, anchor.state, anchor.doubt = epoch_now, 'suspect', doubt
  return reply('OK', anchor, now)
end

-- KEYS anchor
-- ARGV term writer epoch update_id reason
local function suspect(keys, args)
  check_counts(keys, 1, args, 5)
  return suspect2(keys, with_added(args, 5, {'', ''}))
end

-- KEYS lock ob:new book:new tr:new:1s tr:new:5s feat:new
-- ARGV owner ttl_s
local function lock(keys, args)
  check_counts(keys, 6, args, 2)
  local ttl_s = integer(args[2], 'ttl_s')
  if args[1] == '' or ttl_s < 1 then
    fail('ERR lock: expected an owner and a life of at least 1 s, found "' .. args[1] .. '" and ' .. args[2])
  end
  check_types(keys[1], 'string')
  local holder, now = redis.call('GET', keys[1]), now_us()
  if holder == args[1] then
    return {'LOCKED', holder, now}
  end
  if holder then
    return {'HELD', holder, now}
  end
  check_permissions({{'DEL', unpack(keys, 2)}, {'SET', keys[1], '', 'EX', '1'}})

  -- Staging that still exists belongs to a run that lost its lock: it must never be taken for this owner's.
  redis.call('DEL', unpack(keys, 2))
  redis.call('SET', keys[1], args[1], 'EX', args[2])
  return {'LOCKED', args[1], now}
end

-- KEYS lock ob:new book:new tr:new:1s tr:new:5s feat:new
-- ARGV owner
local function unlock(keys, args)
  check_counts(keys, 6, args, 1)
  check_types(keys[1], 'string')
  local holder, now = redis.call('GET', keys[1]), now_us()
  if holder and holder ~= args[1] then
    return {'HELD', holder, now}
  end
  check_permissions({{'DEL', unpack(keys)}})

  -- Without a lock no run owns the staging, so it is deleted too.
  redis.call('DEL', unpack(keys))
  return {holder and 'UNLOCKED' or 'ABSENT', '', now}
end

-- KEYS lock ob:new book:new tr:new:1s tr:new:5s feat:new
-- ARGV owner n_ob n_tr_1s n_tr_5s n_feat book, then the four flat field lists
local function stage(keys, args)
  check_counts(keys, 6, args, 6)
  local lists = field_lists(args, 2, 7)
  for i = 1, 4 do
    if lists[i].count == 0 then
      fail('ERR stage: list ' .. i .. ' is empty; a rebuild writes every key')
    end
  end
  if args[6] == '' then
    fail('ERR stage: the book is empty; a rebuild writes every key')
  end
  check_types(keys[1], 'string')
  local holder, now = redis.call('GET', keys[1]) or '', now_us()
  if holder ~= args[1] or holder == '' then
    return {'LOCK_LOST', holder, now}
  end
  local targets = {keys[2], keys[4], keys[5], keys[6]}
  local permissions = {{'SET', keys[3], '', 'EX', '1'}}
  for _, key in ipairs(targets) do
    table.insert(permissions, {'DEL', key})
    table.insert(permissions, {'HSET', key, 'epoch', '0'})
    table.insert(permissions, {'EXPIRE', key, '1'})
  end
  check_permissions(permissions)

  for i, key in ipairs(targets) do
    replace_hash(key, args, lists[i], STAGING_TTL_S)
  end
  redis.call('SET', keys[3], args[6], 'EX', STAGING_TTL_S)
  return {'STAGED', holder, now}
end

local function missing_staging(keys, update_id)
  local types = {'hash', 'string', 'hash', 'hash', 'hash'}
  for i = 1, 5 do
    local found = redis.call('TYPE', keys[i + 7]).ok
    if found ~= types[i] then
      return keys[i + 7] .. ': expected a ' .. types[i] .. ', found ' .. found
    end
  end
  local staged_id = redis.call('HGET', keys[8], 'update_id')
  if tonumber(staged_id) ~= update_id then
    return keys[8] .. ': expected update_id ' .. text(update_id) .. ', found ' .. tostring(staged_id)
  end
  return nil
end

-- KEYS anchor lock ob book tr:1s tr:5s feat ob:new book:new tr:new:1s tr:new:5s feat:new
-- ARGV owner expected_epoch expected_receipt update_id trade_id stamp_us receipt answered
local function swap2(keys, args)
  check_counts(keys, 12, args, 8)
  local expected, update_id = integer(args[2], 'expected_epoch'), integer(args[4], 'update_id')
  integer(args[5], 'trade_id')
  integer(args[6], 'stamp_us')
  local answered = integer(args[8], 'answered')
  check_types(keys[1], 'hash', keys[2], 'string', keys[3], 'hash')
  local anchor, now = read_anchor(keys[1]), now_us()
  if args[7] ~= '' and anchor.receipt == args[7] and anchor.epoch == expected + 1 then
    -- The reply to this swap was lost and the caller repeats it. Written again, so that it can wait for replicas.
    check_permissions({{'HSET', keys[1], 'epoch', '0'}})
    redis.call('HSET', keys[1], 'receipt', args[7])
    return reply('SWAPPED', anchor, now, 'swapped already')
  end
  local holder = redis.call('GET', keys[2]) or ''
  if holder ~= args[1] or holder == '' then
    return reply('LOCK_LOST', anchor, now, 'lock is held by "' .. holder .. '"')
  end
  if not builds_on(anchor, expected, args[3]) then
    return reply('EPOCH', anchor, now, 'expected ' .. args[2] .. ' of "' .. args[3] .. '", found ' ..
      text(anchor.epoch) .. ' of "' .. anchor.receipt .. '"')
  end
  local missing = missing_staging(keys, update_id)
  if missing then
    return reply('MISSING', anchor, now, missing)
  end
  local live = redis.call('HMGET', keys[3], 'epoch', 'update_id')
  local live_id = tonumber(live[2]) or 0
  if anchor.state == 'anchored' and tonumber(live[1]) == anchor.epoch and live_id > update_id then
    return reply('BEHIND', anchor, now, 'staged update_id ' .. args[4] .. ' is below ' .. text(live_id))
  end
  local permissions = {{'DEL', keys[2]}, {'HSET', keys[1], 'epoch', '0'}, {'HDEL', keys[1], 'reason'}}
  for i = 3, 7 do
    local staged = keys[i + 5]
    table.insert(permissions, {'HSET', staged, 'epoch', '0'})
    table.insert(permissions, {'RENAME', staged, keys[i]})
    table.insert(permissions, {'PERSIST', keys[i]})
    table.insert(permissions, {'EXPIRE', keys[i], '1'})
  end
  check_permissions(permissions)

  local epoch = text(expected + 1)
  for i = 3, 7 do
    if i ~= 4 then
      redis.call('HSET', keys[i + 5], 'epoch', epoch)
    end
    redis.call('RENAME', keys[i + 5], keys[i])
  end
  -- RENAME keeps the staging key's time to live, so that of each hot key is set here.
  redis.call('PERSIST', keys[3])
  redis.call('PERSIST', keys[4])
  redis.call('EXPIRE', keys[5], TRADES_TTL_S)
  redis.call('EXPIRE', keys[6], TRADES_TTL_S)
  redis.call('EXPIRE', keys[7], FEATURES_TTL_S)
  -- A rebuild has been validated and counts as sound until the writer, which loads it at its next write, vouches for it.
  redis.call('HSET', keys[1], 'epoch', epoch, 'update_id', args[4], 'trade_id', args[5], 'stamp_us', args[6],
    'receipt', args[7], 'root', args[7], 'unvalidated', '0', 'anchored_at', text(now),
    'sound_until_us', text(now + SWAP_SOUND_FOR_US), 'unsound', '')
  anchor.epoch, anchor.receipt, anchor.root = expected + 1, args[7], args[7]
  -- A doubt that was raised after the run read the anchor has another `suspect_id`: it still counts.
  if anchor.state == 'suspect' and update_id < anchor.suspect_id and answered ~= anchor.suspect_id then
    redis.call('HSET', keys[1], 'state', 'suspect')
  else
    anchor.state, anchor.doubt = 'anchored', ''
    redis.call('HSET', keys[1], 'state', 'anchored')
    redis.call('HDEL', keys[1], 'reason', 'suspect_id', 'suspect_by', 'suspect_at', 'doubt')
  end
  redis.call('DEL', keys[2])
  return reply('SWAPPED', anchor, now)
end

-- KEYS anchor lock ob book tr:1s tr:5s feat ob:new book:new tr:new:1s tr:new:5s feat:new
-- ARGV owner expected_epoch update_id stamp_us receipt answered
local function swap(keys, args)
  check_counts(keys, 12, args, 6)
  local shifted = with_added(args, 3, {'0'})
  return swap2(keys, with_added(shifted, 2, {ANY_RECEIPT}))
end

-- Writes the writer's memory as the hot state after a failover that lost acknowledged writes: all of it or nothing.
--
-- KEYS anchor ob tr:1s tr:5s feat book
-- ARGV term writer seen_epoch seen_receipt known_epoch held_receipt doubt replication_id read_us update_id trade_id
-- stamp_us receipt root dataset unvalidated [vouch sound_until_us sound_for_us unsound] n_ob n_tr_1s n_tr_5s n_feat book,
-- then the four flat field lists. `seen_…` is what the caller has read since the failover, `known_epoch` the highest
-- epoch that it knows of, `held_receipt` the receipt that its memory was built on, `unvalidated` the restatements since
-- the last comparison with the exchange. A lock is no fence: the new epoch makes the swap of the run that holds it fail.
local function restate(keys, args)
  local vouch
  args, vouch = take_vouch(args, 17)
  check_counts(keys, 6, args, 21)
  local term, seen_epoch, known_epoch = integer(args[1], 'term'), integer(args[3], 'seen_epoch'), integer(args[5], 'known_epoch')
  local read_us, update_id = integer(args[9], 'read_us'), integer(args[10], 'update_id')
  local trade_id, stamp_us = integer(args[11], 'trade_id'), integer(args[12], 'stamp_us')
  local receipt, unvalidated = args[13], integer(args[16], 'unvalidated')
  local lists, book = field_lists(args, 17, 22), args[21]
  for i = 1, 4 do
    if lists[i].count == 0 then
      fail('ERR restate: list ' .. i .. ' is empty; a restatement writes every key')
    end
  end
  if book == '' or receipt == '' or args[14] == '' or args[7] == '' then
    fail('ERR restate: expected a book, a receipt, a root and a doubt')
  end
  check_types(keys[1], 'hash')
  local anchor, now, here = read_anchor(keys[1]), now_us(), replication_id()
  local newer = anchor.epoch > known_epoch or (anchor.epoch == known_epoch and anchor.receipt ~= args[6])
  local behind = anchor.receipt == args[6] and (update_id < anchor.update_id or trade_id < anchor.trade_id)
  local late = now - read_us > RESTATE_READ_MAX_US or stamp_us > now or now - stamp_us > RESTATE_STAMP_MAX_US
  for _, fence in ipairs({
    {'DONE', anchor.receipt == receipt},
    {'FOREIGN', anchor.dataset ~= '' and anchor.dataset ~= args[15]},
    {'FENCED', anchor.term ~= term or anchor.writer ~= args[2] or term == 0},
    {'REPLID', here == '' or here ~= args[8]},
    {'EPOCH', not builds_on(anchor, seen_epoch, args[4]) or newer},
    {'DOUBT', anchor.state == 'suspect' and not anchor.absent and anchor.doubt ~= args[7]},
    {'LATE', late},
    {'BEHIND', behind},
  }) do
    if fence[2] then
      if fence[1] == 'DONE' then
        -- Written again, so that a caller whose reply was lost can wait until replicas have it.
        check_permissions({{'HSET', keys[1], 'epoch', '0'}})
        redis.call('HSET', keys[1], 'receipt', receipt)
      end
      return reply(fence[1], anchor, now)
    end
  end
  local permissions = {{'HSET', keys[1], 'epoch', '0'}, {'HDEL', keys[1], 'doubt'}, {'SET', keys[6], ''}}
  for i = 2, 5 do
    table.insert(permissions, {'DEL', keys[i]})
    table.insert(permissions, {'HSET', keys[i], 'epoch', '0'})
    table.insert(permissions, {'EXPIRE', keys[i], '1'})
  end
  check_permissions(permissions)

  anchor.epoch = math.max(anchor.epoch, known_epoch) + 1
  local epoch, ttls = text(anchor.epoch), {false, TRADES_TTL_S, TRADES_TTL_S, FEATURES_TTL_S}
  for i = 1, 4 do
    replace_hash(keys[i + 1], args, lists[i], ttls[i], epoch)
  end
  redis.call('SET', keys[6], book)
  local sound_until_us, unsound = 0, ''
  if vouch then
    sound_until_us, unsound = math.min(vouch.until_us, now + vouch.for_us), vouch.unsound
  end
  redis.call('HSET', keys[1], 'epoch', epoch, 'update_id', args[10], 'trade_id', args[11], 'stamp_us', args[12],
    'receipt', receipt, 'root', args[14], 'unvalidated', text(math.max(anchor.unvalidated, unvalidated) + 1),
    'anchored_at', text(now), 'beat_us', text(now), 'state', 'anchored', 'sound_until_us', text(sound_until_us),
    'unsound', unsound)
  if args[15] ~= '' then
    redis.call('HSET', keys[1], 'dataset', args[15])
  end
  redis.call('HDEL', keys[1], 'reason', 'suspect_id', 'suspect_by', 'suspect_at', 'doubt')
  anchor.state, anchor.receipt, anchor.root, anchor.doubt = 'anchored', receipt, args[14], ''
  return reply('RESTATED', anchor, now)
end

-- Records that a comparison with the exchange has confirmed the stored state.
--
-- KEYS anchor
-- ARGV epoch receipt
local function validated(keys, args)
  check_counts(keys, 1, args, 2)
  local epoch = integer(args[1], 'epoch')
  check_types(keys[1], 'hash')
  local anchor, now = read_anchor(keys[1]), now_us()
  if not builds_on(anchor, epoch, args[2]) then
    return reply('EPOCH', anchor, now)
  end
  check_permissions({{'HSET', keys[1], 'unvalidated', '0'}})

  redis.call('HSET', keys[1], 'unvalidated', '0')
  return reply('OK', anchor, now)
end

-- KEYS anchor ob tr:1s tr:5s feat lock
local function read(keys, args)
  check_counts(keys, 6, args, 0)
  local names = {'ob', 'tr:1s', 'tr:5s', 'feat'}
  local result = {now_us(), '', redis.call('EXISTS', keys[6]), redis.call('HGETALL', keys[1])}
  local epoch = redis.call('HGET', keys[1], 'epoch')
  local incomplete = {}
  if not epoch then
    table.insert(incomplete, 'anchor missing')
  end
  for i = 1, 4 do
    local fields = redis.pcall('HGETALL', keys[i + 1])
    local found = redis.pcall('HGET', keys[i + 1], 'epoch')
    if fields.err then
      -- A key of another type is in its place. It counts as missing until the next `apply` replaces it.
      table.insert(incomplete, names[i] .. ': ' .. fields.err)
      fields = {}
    elseif not found then
      table.insert(incomplete, names[i] .. ' missing')
      fields = {}
    elseif found ~= epoch then
      table.insert(incomplete, names[i] .. ' of epoch ' .. found)
      fields = {}
    end
    result[i + 4] = fields
  end
  result[2] = table.concat(incomplete, ', ')
  result[9] = replication_id()
  return result
end

local function committed_before(preds, slot)
  for _, entry in ipairs(redis.call('XREVRANGE', preds, '+', '-', 'COUNT', SLOTS_LOOKED_BACK)) do
    local fields = entry[2]
    for i = 1, #fields, 2 do
      if fields[i] == 'slot' and tonumber(fields[i + 1]) == slot then
        return true
      end
    end
  end
  return false
end

-- KEYS pred preds
-- ARGV slot own_degraded length_max age_max_ms, then a flat field list
local function commit_prediction(keys, args)
  check_counts(keys, 2, args, 6)
  local slot = integer(args[1], 'slot')
  local length_max, age_max_ms = integer(args[3], 'length_max'), integer(args[4], 'age_max_ms')
  if #args % 2 ~= 0 or #args > VALUES_MAX then
    fail('ERR prediction: expected pairs of field and value, found ' .. (#args - 4) .. ' values')
  end
  check_types(keys[1], 'hash', keys[2], 'stream')
  local now = now_us()
  local current, late_us = math.floor(now / SLOT_US), now - slot * SLOT_US
  if slot ~= current and slot ~= current - 1 then
    return {'REFUSED', now, late_us, 'slot ' .. args[1] .. ' is neither the current one, ' .. text(current) .. ', nor the one before'}
  end
  local latest = tonumber(redis.call('HGET', keys[1], 'slot')) or -1
  if latest == slot or committed_before(keys[2], slot) then
    return {'EXISTS', now, late_us, ''}
  end
  if args[2] == '1' and late_us < OWN_DEGRADED_NOT_BEFORE_US then
    return {'EARLY', now, late_us, 'a replica that is degraded for its own reasons leaves the first 600 ms to others'}
  end
  local record = {unpack(args, 5)}
  for _, value in ipairs({'slot', args[1], 'latency_ms', string.format('%.3f', late_us / 1000)}) do
    table.insert(record, value)
  end
  -- A slot ahead of the clock was written before the clock was set back.
  local is_latest = latest < slot or latest > current
  check_permissions({
    {'XADD', keys[2], '*', 'slot', '0'}, {'XTRIM', keys[2], 'MINID', '~', '0'},
    {'DEL', keys[1]}, {'HSET', keys[1], 'slot', '0'}, {'EXPIRE', keys[1], '1'},
  })

  redis.call('XADD', keys[2], 'MAXLEN', '~', length_max, '*', unpack(record))
  redis.call('XTRIM', keys[2], 'MINID', '~', text(math.max(0, math.floor(now / 1000) - age_max_ms)))
  if is_latest then
    redis.call('DEL', keys[1])
    redis.call('HSET', keys[1], unpack(record))
    redis.call('EXPIRE', keys[1], PREDICTION_TTL_S)
  end
  return {'COMMITTED', now, late_us, ''}
end

redis.register_function{function_name = 'sheetanchor_version', callback = version, flags = {'no-writes'}}
redis.register_function('sheetanchor_apply', apply)
redis.register_function('sheetanchor_apply2', apply2)
redis.register_function('sheetanchor_take', take)
redis.register_function('sheetanchor_take2', take2)
redis.register_function('sheetanchor_restate', restate)
redis.register_function('sheetanchor_validated', validated)
-- The next three run under memory pressure too: `unlock` frees memory, `suspect` changes a few bytes that must not be lost.
redis.register_function{function_name = 'sheetanchor_unlock', callback = unlock, flags = {'allow-oom'}}
redis.register_function{function_name = 'sheetanchor_suspect', callback = suspect, flags = {'allow-oom'}}
redis.register_function{function_name = 'sheetanchor_suspect2', callback = suspect2, flags = {'allow-oom'}}
redis.register_function('sheetanchor_lock', lock)
redis.register_function('sheetanchor_stage', stage)
redis.register_function('sheetanchor_swap', swap)
redis.register_function('sheetanchor_swap2', swap2)
redis.register_function{function_name = 'sheetanchor_read', callback = read, flags = {'no-writes'}}
redis.register_function('sheetanchor_commit_prediction', commit_prediction)
