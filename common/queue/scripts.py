"""What has to be atomic in Redis: Lua scripts of the prompts stream, the registry, the run lease.

Used by `broker` and `fence` of this folder alone. Time is always Redis' own. A prompt's life:

    waiting --CLAIM--> claimed by a replica --push_group--> gone
                         |  ^                      GIVE_BACK, or SWEEP when its lease ended
                         v  |
                       returned: claimed by nobody, next to be claimed

Marks of a prompt say what became of it, one a replica: `lost` (the replica vanished, or its engine
died, while it had the prompt), `slow` (over the deadline), `doubted` (failed in a replica that may
be sick itself), `failed`. A replica with a mark other than `lost` never gets the prompt again.
"""

RETURNED = "returned"
"""The consumer that holds what nobody holds; names of replicas end in a random part."""

# KEYS of the first four scripts: stream, hash by entry id, sorted set by time, stream.
_PROMPTS = """
local prompts, marks_key, claimers, dead = unpack(KEYS)
local GROUP, RETURNED = 'rollout', 'returned'
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function marks_of(id)
  local text = redis.call('HGET', marks_key, id)
  return text and cjson.decode(text) or {}
end
local function count(marks, kind)
  local number = 0
  for _, found in pairs(marks) do if found == kind then number = number + 1 end end
  return number
end
local function place_of(replica) return string.match(replica, '^(.*)%-[^-]*$') or replica end
local function owner_of(id)
  local pending = redis.call('XPENDING', prompts, GROUP, id, id, 1)
  return pending[1] and pending[1][2] or nil
end
local function mark(id, replica, kind, error_text)
  local marks = marks_of(id)
  marks[replica] = kind
  if error_text then marks[''] = {replica, error_text} end
  redis.call('HSET', marks_key, id, cjson.encode(marks))
  return marks
end
local function give_back(id)
  redis.call('XCLAIM', prompts, GROUP, RETURNED, 0, id, 'JUSTID')
end
local function finish(id)
  redis.call('XACK', prompts, GROUP, id)
  redis.call('XDEL', prompts, id)
  redis.call('HDEL', marks_key, id)
end
-- Buries a prompt and returns {prompt_id, error, attempts, replica}. The error that came last, and
-- whose it was, are kept under the name of no replica.
local function bury(id, marks, replica, why, attempts)
  local last = marks[''] or {replica, ''}
  local error_text = last[2] == '' and why or why .. ', the last one: ' .. last[2]
  replica = last[1]
  local entry = redis.call('XRANGE', prompts, id, id)[1]
  local fields = {}
  if entry then
    for index = 1, #entry[2], 2 do fields[entry[2][index]] = entry[2][index + 1] end
  end
  local prompt_id = fields['prompt_id'] or ''
  local letter = cjson.encode({prompt_id = prompt_id, error = error_text, attempts = attempts,
                               replica = replica, body = fields['body'] or ''})
  redis.call('XADD', dead, 'MAXLEN', '~', 10000, '*', 'prompt_id', prompt_id, 'body', letter)
  finish(id)
  return {prompt_id, error_text, attempts, replica}
end
-- Too many replicas failed at it, or died over it: the letter, else nil.
local function bury_if_hopeless(id, marks, replica, max_attempts, max_deaths)
  local failures, deaths = count(marks, 'failed'), count(marks, 'lost')
  if failures >= max_attempts then
    return bury(id, marks, replica, failures .. ' replica(s) failed at it', failures)
  end
  if deaths >= max_deaths then
    return bury(id, marks, replica, deaths .. ' replica(s) died over it', failures + deaths)
  end
  return nil
end
"""

CLAIM = (
    _PROMPTS
    + """
-- {entry id, fields, failures so far, whether it is worked on alone}; 'wait'; nil: nothing there.
local replica, lease_ms, alone_after = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local function is_risky(marks) return count(marks, 'lost') >= alone_after end
local function leaves_it_to_others(marks, idle_ms)
  if idle_ms >= lease_ms then return false end
  local place, was_here = place_of(replica), false
  for name, kind in pairs(marks) do
    if kind == 'lost' and place_of(name) == place then was_here = true end
  end
  if not was_here then return false end
  local active = redis.call('ZRANGEBYSCORE', claimers, now_ms() - lease_ms, '+inf')
  for _, name in ipairs(active) do if place_of(name) ~= place then return true end end
  return false
end
local function returned(start, number)
  for _, pending in ipairs(redis.call('XPENDING', prompts, GROUP, start, '+', number, RETURNED)) do
    local id, marks = pending[1], marks_of(pending[1])
    local known = marks[replica]
    if (not known or known == 'lost') and not leaves_it_to_others(marks, pending[3]) then
      local entry = redis.call('XCLAIM', prompts, GROUP, replica, 0, id)[1]
      if entry then
        return {entry[1], entry[2], count(marks, 'failed'), is_risky(marks) and 1 or 0}
      end
      redis.call('XACK', prompts, GROUP, id)
      redis.call('HDEL', marks_key, id)
    end
  end
end
redis.call('ZADD', claimers, now_ms(), replica)
if redis.call('HLEN', marks_key) > 0 then
  for _, pending in ipairs(redis.call('XPENDING', prompts, GROUP, '-', '+', 256, replica)) do
    if is_risky(marks_of(pending[1])) then return 'wait' end
  end
end
-- Nearly always one of the first few is for us; marks are what makes the others worth a look.
local found = returned('-', 4) or (redis.call('HLEN', marks_key) > 0 and returned('-', 256))
if found then return found end
local new = redis.call('XREADGROUP', 'GROUP', GROUP, replica, 'COUNT', 1, 'STREAMS', prompts, '>')
if new and new[1] then
  local entry = new[1][2][1]
  return {entry[1], entry[2], 0, 0}
end
return nil
"""
)

RENEW = (
    _PROMPTS
    + """
local replica, id = ARGV[1], ARGV[2]
redis.call('ZADD', claimers, now_ms(), replica)
if owner_of(id) ~= replica then return 0 end
redis.call('XCLAIM', prompts, GROUP, replica, 0, id, 'JUSTID')
return 1
"""
)

GIVE_BACK = (
    _PROMPTS
    + """
-- A letter if that buried it; 1: given back; 0: it was another's or finished before.
local replica, id, kind, error_text = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local max_attempts, max_deaths = tonumber(ARGV[5]), tonumber(ARGV[6])
local owner = owner_of(id)
if not owner then return 0 end
local marks = kind ~= '' and mark(id, replica, kind, error_text) or marks_of(id)
if owner ~= replica and owner ~= RETURNED then return 0 end
local letter = bury_if_hopeless(id, marks, replica, max_attempts, max_deaths)
if letter then return letter end
if owner ~= replica then return 0 end
give_back(id)
return 1
"""
)

SETTLE = (
    _PROMPTS
    + """
-- The replica has answered a prompt: what it doubted before is `failed`, or forgotten.
local replica, kind = ARGV[1], ARGV[2]
for index = 3, #ARGV do
  local id = ARGV[index]
  local marks = marks_of(id)
  if marks[replica] == 'doubted' then
    if kind ~= '' then marks[replica] = kind else marks[replica], marks[''] = nil, nil end
    if next(marks) then
      redis.call('HSET', marks_key, id, cjson.encode(marks))
    else
      redis.call('HDEL', marks_key, id)
    end
  end
end
return 0
"""
)

SWEEP = (
    _PROMPTS
    + """
-- Letters of what it buried. One sweep a period, whoever comes first.
local sweeper, lease_ms, period_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local max_attempts, max_deaths, forget_ms = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local now, letters = now_ms(), {}
local since_ms = now - tonumber(redis.call('GET', claimers .. ':swept') or 0)
if since_ms >= 0 and since_ms < period_ms then return letters end
redis.call('SET', claimers .. ':swept', string.format('%.0f', now))
-- Leases that ended.
local start = '-'
while start do
  local page = redis.call('XPENDING', prompts, GROUP, 'IDLE', lease_ms, start, '+', 1000)
  for _, pending in ipairs(page) do
    local id, owner = pending[1], pending[2]
    if owner ~= RETURNED then
      local marks = marks_of(id)
      if not marks[owner] then marks = mark(id, owner, 'lost') end
      give_back(id)
      local letter = bury_if_hopeless(id, marks, sweeper, max_attempts, max_deaths)
      if letter then letters[#letters + 1] = letter end
    end
  end
  start = #page == 1000 and '(' .. page[#page][1] or nil
end
-- What every replica that claims or works had a try at, one of them known to be well: nobody will
-- take it. A moment is left for one that is about to come.
redis.call('ZREMRANGEBYSCORE', claimers, '-inf', now - forget_ms)
local active = redis.call('ZRANGEBYSCORE', claimers, now - lease_ms, '+inf')
for _, id in ipairs(redis.call('HKEYS', marks_key)) do
  local pending = redis.call('XPENDING', prompts, GROUP, id, id, 1)[1]
  if not pending then
    if #redis.call('XRANGE', prompts, id, id) == 0 then redis.call('HDEL', marks_key, id) end
  elseif pending[2] == RETURNED then
    local marks, tried = marks_of(id), #active > 0
    for _, name in ipairs(active) do
      if not marks[name] or marks[name] == 'lost' then tried = false end
    end
    local failures = count(marks, 'failed')
    local letter = bury_if_hopeless(id, marks, sweeper, max_attempts, max_deaths)
    if not letter and tried and failures > 0 and pending[3] >= math.min(lease_ms, 1000) then
      letter = bury(id, marks, sweeper, 'each of the replicas at work failed at it', failures)
    end
    if letter then letters[#letters + 1] = letter end
  end
end
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', prompts, GROUP)) do
  local name, pending, idle_ms = consumer[2], consumer[4], consumer[6]
  if pending == 0 and idle_ms > forget_ms and name ~= RETURNED then
    redis.call('XGROUP', 'DELCONSUMER', prompts, GROUP, name)
  end
end
return letters
"""
)

PUSH = """
-- One script is a third of the work of a transaction for the client.
redis.call('XADD', KEYS[1], '*', ARGV[3], ARGV[4], ARGV[5], ARGV[6])
redis.call('XACK', KEYS[2], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[2], ARGV[2])
redis.call('HDEL', KEYS[3], ARGV[2])
return 1
"""

UNFINISHED = """
-- Ids alone: bodies are most of the stream, and who asks this reads none.
local ids = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do
  for place = 1, #entry[2], 2 do
    if entry[2][place] == 'prompt_id' then table.insert(ids, entry[2][place + 1]) end
  end
end
return ids
"""

# --- registry and run lease -----------------------------------------------------------------------

KEEP_RUN_S = 7 * 24 * 3600
"""So long after the last sign of a learner or replica, Redis forgets a run. One that is resumed
later feeds again what is outstanding, as after any loss of Redis' data."""
_KEEP = f"""
for place = FIRST, #KEYS do redis.call('EXPIRE', KEYS[place], {KEEP_RUN_S}) end
"""

ANNOUNCE = """
-- KEYS from the third on: those of the run, which a live replica keeps.
local time = redis.call('TIME')
local now_s = tonumber(time[1]) + time[2] / 1e6
redis.call('ZADD', KEYS[1], now_s, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_s - ARGV[4])
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
"""
ANNOUNCE += _KEEP.replace("FIRST", "3") + "return 0"
HOLD_RUN = """
-- Gives a free run, one whose learner is known to be dead, or one's own, a new epoch. At least the
-- time in seconds: epochs grow also when Redis has lost the last one.
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] and held ~= ARGV[3] then
  return {0, held, redis.call('PTTL', KEYS[1])}
end
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
local epoch = math.max(last + 1, tonumber(redis.call('TIME')[1]), tonumber(ARGV[4]))
redis.call('SET', KEYS[2], string.format('%.0f', epoch))
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {epoch, ARGV[1], tonumber(ARGV[2])}
"""
RENEW_RUN = """
-- A lease that ran out, or was lost, is taken again as long as nobody had a later epoch.
local held = redis.call('GET', KEYS[1])
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
if last > tonumber(ARGV[2]) or (held and held ~= ARGV[1]) then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
"""
RENEW_RUN += _KEEP.replace("FIRST", "2") + "return 1"
DROP_RUN = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""
DROP_RUN += _KEEP.replace("FIRST", "2") + "return 0"
FENCED = """
-- Runs commands (JSON) for a learner, unless there is a later one: then both epochs are said.
local last, mine = tonumber(redis.call('GET', KEYS[1]) or '0'), tonumber(ARGV[1])
if last > mine then
  return redis.error_reply(string.format('FENCED %.0f %.0f', last, mine))
end
if last < mine then redis.call('SET', KEYS[1], ARGV[1]) end
local reply
for _, command in ipairs(cjson.decode(ARGV[2])) do
  reply = redis.pcall(unpack(command))
  if type(reply) == 'table' and reply.err then return reply end
end
return reply
"""
