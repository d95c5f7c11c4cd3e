"""What the backplane runs inside Redis: the steps that must not be interleaved with another worker's.

A log is a Redis stream. The ids of its entries are `<log>-<number>`: the time when it was opened, in microseconds, and
a number that counts from 1. An entry has `d`, a message (empty for a priming event), or `end`; `r`, where it is a
result; and `c`, the bytes of all messages up to it that are no results, by which a log is bounded. An `open` entry,
number 0, marks where a standalone stream was opened.

The logs of a deployment are bounded together. `logs` has the time when each runs out (milliseconds since the epoch),
plus `OPEN` while its stream goes on, so that the first of them is the one to be evicted next: one that has run out,
then of those that have ended the one with the least time left, then of those that go on. `sizes` has the bytes that
each takes, and under the empty name their sum.

Times are those of Redis, and leases are judged where they are kept: the clocks of workers play no part.
"""

from __future__ import annotations

from typing import Final

# ---- workers

# KEYS: lease, inbox, the lists of workers that this one belongs to. ARGV: this worker, milliseconds of a lease, the
# last entry that was taken. Returns whether there was a lease still.
BEAT: Final = """
local had = redis.call('SET', KEYS[1], '1', 'PX', ARGV[2], 'GET')
local now = tonumber(redis.call('TIME')[1])
for i = 3, #KEYS do
  redis.call('ZADD', KEYS[i], now, ARGV[1])
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now - 60)
  redis.call('PEXPIRE', KEYS[i], 60000)
end
redis.call('XTRIM', KEYS[2], 'MINID', ARGV[3])
redis.call('PEXPIRE', KEYS[2], 60000)
return had and 1 or 0
"""

# KEYS: an inbox, the lists of workers. ARGV: the worker it belongs to, most bytes, the entry's fields.
# An inbox that nobody empties goes with its worker: a minute after it. One that has no worker is not opened, as clients
# may make names up, and one that is full takes no more of what is large.
PUT: Final = """
local known = false
for i = 2, #KEYS do known = known or redis.call('ZSCORE', KEYS[i], ARGV[1]) end
if not known then return 0 end
local size = 0
for i = 3, #ARGV do size = size + #ARGV[i] end
if size > 4096 then
  local used = redis.pcall('MEMORY', 'USAGE', KEYS[1], 'SAMPLES', 0)
  if type(used) == 'number' and used > tonumber(ARGV[2]) then return 2 end
end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', 10000, '*', unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], 60000)
return 1
"""
NOBODY: Final = 0
FULL: Final = 2

# KEYS: the lists of workers. ARGV: lease prefix. Returns the workers that have a lease, some of them more than once.
ALIVE: Final = """
local alive = {}
for _, list in ipairs(KEYS) do
  for _, worker in ipairs(redis.call('ZRANGE', list, 0, -1)) do
    if redis.call('EXISTS', ARGV[1] .. worker) == 1 then alive[#alive + 1] = worker end
  end
end
return alive
"""

_TELL_ALL = """
local function tell_all()
  local alive, seen = {}, {[ARGV[2]] = true}
  for i = 1, tonumber(ARGV[1]) do
    for _, worker in ipairs(redis.call('ZRANGE', KEYS[i], 0, -1)) do
      if not seen[worker] then
        seen[worker] = true
        local inbox = ARGV[3] .. worker
        redis.call('XADD', inbox, 'MAXLEN', '~', 10000, '*', unpack(ARGV, 5, 10))
        redis.call('PEXPIRE', inbox, 60000)
        if redis.call('EXISTS', ARGV[4] .. worker) == 1 then alive[#alive + 1] = worker end
      end
    end
  end
  return alive
end
"""

# KEYS: the lists of workers. ARGV: how many lists, this worker, inbox prefix, lease prefix, the six fields of a signal.
BROADCAST: Final = f"""{_TELL_ALL}
tell_all()
"""

# ---- ends

# An end has the time when the id expires as its score (seconds since the epoch). The member `horizon` stands for all
# sessions that expire no later than its score: they are over, whether or not they are listed.

# KEYS: the lists of workers, as many lists of ended sessions. ARGV: as BROADCAST, then now and when the id expires
# (seconds since the epoch), most ends in a list. Returns the workers that have a lease.
END: Final = f"""{_TELL_ALL}
for i = tonumber(ARGV[1]) + 1, #KEYS do
  local list = KEYS[i]
  redis.call('ZADD', list, ARGV[12], ARGV[8])
  redis.call('ZREMRANGEBYSCORE', list, '-inf', ARGV[11])
  local excess = redis.call('ZCARD', list) - tonumber(ARGV[13]) - 1
  if excess > 0 then
    local gone = redis.call('ZPOPMIN', list, excess)
    redis.call('ZADD', list, 'GT', gone[#gone], 'horizon')
  end
  local last = redis.call('ZRANGE', list, -1, -1, 'WITHSCORES')
  if last[2] then redis.call('EXPIREAT', list, string.format('%.0f', last[2] + 1)) end
end
return tell_all()
"""

_IS_ENDED = """
local function is_ended(list, session, expires)
  local found = redis.call('ZMSCORE', list, session, 'horizon')
  return found[1] or (found[2] and tonumber(found[2]) >= tonumber(expires))
end
"""

# KEYS: lists of ended sessions. ARGV: a session, when its id expires (seconds since the epoch, or `inf`).
IS_ENDED: Final = f"""{_IS_ENDED}
for _, list in ipairs(KEYS) do
  if is_ended(list, ARGV[1], ARGV[2] == 'inf' and math.huge or ARGV[2]) then return 1 end
end
return 0
"""

# ---- logs

OPEN: Final = 10**13
"""Milliseconds that come on top of the time when a log runs out whose stream goes on. The epoch is at a fifth of it."""

# KEYS: log, `logs`, `sizes`. ARGV: milliseconds to keep, most bytes of all logs.
_LOGS = f"""
local OPEN, OVERHEAD, ENTRY = {OPEN}, 1024, 96
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function of(entry, name)
  for i = 1, #entry[2], 2 do if entry[2][i] == name then return entry[2][i + 1] end end
end
local function size(entry) return #(of(entry, 'd') or '') end
local function boot_of(entry) return string.match(entry[1], '^%d+') end
local function number_of(entry) return tonumber(string.match(entry[1], '%d+$')) end
local function last(log) return redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1] end
local function charge(log, bytes)
  if bytes ~= 0 then
    redis.call('HINCRBY', KEYS[3], log, bytes)
    redis.call('HINCRBY', KEYS[3], '', bytes)
  end
end
local function keep(log, age, over)
  redis.call('PEXPIRE', log, age)
  redis.call('ZADD', KEYS[2], now + age + (over and 0 or OPEN), log)
end
local function drop(log)
  charge(log, -tonumber(redis.call('HGET', KEYS[3], log) or 0))
  redis.call('HDEL', KEYS[3], log)
  redis.call('ZREM', KEYS[2], log)
  redis.call('DEL', log, log .. ':followers', log .. ':calls', log .. ':read')
end
local function cut_down(log)
  local newest = last(log)
  if not newest or of(newest, 'r') or redis.call('XLEN', log) == 1 then return false end
  redis.call('XTRIM', log, 'MAXLEN', '=', 1)
  charge(log, OVERHEAD + ENTRY + size(newest) - tonumber(redis.call('HGET', KEYS[3], log) or 0))
  redis.call('ZADD', KEYS[2], now + tonumber(ARGV[1]) + OPEN, log)
  return true
end
local function evict()
  for _ = 1, 8 do
    local found = redis.call('ZRANGE', KEYS[2], 0, 1, 'WITHSCORES')
    local log, due = found[1], tonumber(found[2])
    if log == KEYS[1] then log, due = found[3], tonumber(found[4]) end
    if not log then break end
    local crowded = tonumber(redis.call('HGET', KEYS[3], '') or 0) > tonumber(ARGV[2])
    if due < now then drop(log)
    elseif not crowded then break
    elseif due < OPEN or not cut_down(log) then drop(log) end
  end
  local left = redis.call('ZRANGEBYSCORE', KEYS[2], OPEN, OPEN + now, 'LIMIT', 0, 2)
  for _, log in ipairs(left) do drop(log) end
  redis.call('PEXPIRE', KEYS[2], 2 * ARGV[1])
  redis.call('PEXPIRE', KEYS[3], 2 * ARGV[1])
end
"""

# ARGV: and inbox prefix, most entries of a log, most bytes of it.
_LOG = f"""{_LOGS}
local function trim(id, total)
  local freed = 0
  while redis.call('XLEN', KEYS[1]) > tonumber(ARGV[4]) or total > tonumber(ARGV[5]) do
    local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
    local before = tonumber(of(first, 'c')) - size(first)
    if first[1] == id then break end
    if redis.call('XLEN', KEYS[1]) <= tonumber(ARGV[4]) and total - before <= tonumber(ARGV[5]) then break end
    redis.call('XDEL', KEYS[1], first[1])
    freed = freed + ENTRY + size(first)
  end
  return freed
end
local function add(before, field, data, number, result)
  local log, place, total = nil, 0, 0
  if before then
    log, place, total = boot_of(before), number_of(before), tonumber(of(before, 'c'))
  else
    log = time[1] .. string.format('%06d', time[2])
  end
  local id = log .. '-' .. string.format('%.0f', number ~= '' and tonumber(number) or place + 1)
  if field == 'd' and not result then total = total + #data end
  local fields = {{field, data, 'c', total}}
  if result then fields[5], fields[6] = 'r', '1' end
  redis.call('XADD', KEYS[1], id, unpack(fields))
  local freed = (field == 'd' and not result) and trim(id, total) or 0
  charge(KEYS[1], (before and 0 or OVERHEAD) + ENTRY + #data - freed)
  return id
end
local function tell_followers()
  for _, worker in ipairs(redis.call('SMEMBERS', KEYS[1] .. ':followers')) do
    redis.call('XADD', ARGV[3] .. worker, 'MAXLEN', '~', 10000, '*', 'grown', KEYS[1])
    redis.call('PEXPIRE', ARGV[3] .. worker, 60000)
  end
end
"""

# ARGV: and field, data, what is owed, number, flags, milliseconds to keep it after this.
# Nothing comes after the end; what was added before is not added again. What is owed is sent when it changes, and
# asked for where Redis has lost it. The flag r is for a result; w has the writer wait where the client that reads would
# lose something, and f has nobody wait for that client any more.
APPEND: Final = f"""{_LOG}
local field, data, debt, number, flags, age = unpack(ARGV, 6, 11)
local calls = KEYS[1] .. ':calls'
local before = last(KEYS[1])
if before and of(before, 'end') then return false end
if before and number ~= '' and number_of(before) >= tonumber(number) then return boot_of(before) .. '-' .. number end
if debt ~= '' then redis.call('SET', calls, debt, 'PX', age)
elseif field == 'end' then redis.call('DEL', calls)
elseif number ~= '' and redis.call('PEXPIRE', calls, age) == 0 then return 'owed' end
if flags == 'w' then
  local place, total = string.match(redis.call('GET', KEYS[1] .. ':read') or '', '^(%d+) (%d+)$')
  local unread = place and before and number_of(before) - place or 0
  if unread > 0 then
    local bytes = tonumber(of(before, 'c')) - total + #data
    if unread >= tonumber(ARGV[4]) or bytes > tonumber(ARGV[5]) then return 'wait' end
  end
elseif flags == 'f' then redis.call('DEL', KEYS[1] .. ':read') end
local id = add(before, field, data, number, flags == 'r')
keep(KEYS[1], tonumber(age), field == 'end')
-- Small entries in between add little; looking for what is to be evicted takes longer than adding one.
if not before or field == 'end' or #data > 1024 or number_of(before) % 16 == 0 then evict() end
tell_followers()
return id
"""
OWED_ANEW: Final = b"owed"
WAIT: Final = b"wait"

# KEYS: and the lease of the worker that owes. ARGV: as _LOG, and what it owes, then the messages that pay it.
PAY: Final = f"""{_LOG}
local calls = KEYS[1] .. ':calls'
if redis.call('GET', calls) ~= ARGV[6] then return 0 end
if redis.call('EXISTS', KEYS[4]) == 1 then return 1 end
for i = 7, #ARGV do add(last(KEYS[1]), 'd', ARGV[i], '', true) end
add(last(KEYS[1]), 'end', '', '')
redis.call('DEL', calls)
keep(KEYS[1], tonumber(ARGV[1]), true)
evict()
tell_followers()
return 2
"""
OWED: Final = 1
PAID: Final = 2

_KNOWS = """
local function knows(log, id)
  local next = redis.call('XRANGE', log, '(' .. id, '+', 'COUNT', 1)[1]
  if next then return string.match(next[1], '^%d+') == string.match(id, '^%d+') end
  return redis.call('XRANGE', log, id, id)[1] ~= nil
end
"""

# KEYS: log. ARGV: an id. Returns whether it is, or was, one of the log's.
KNOWS: Final = f"""{_KNOWS}
return knows(KEYS[1], ARGV[1]) and 1 or 0
"""

# ARGV: and after, this worker, most bytes, 1 for a stream whose writers wait for its reader.
# Returns whether `after` is, or was, one of the log's, and what follows it.
READ: Final = f"""{_LOGS}{_KNOWS}
local after, worker, most = unpack(ARGV, 3, 5)
if not knows(KEYS[1], after) then return {{0, {{}}}} end
redis.call('SADD', KEYS[1] .. ':followers', worker)
for _, suffix in ipairs({{':followers', ':holder'}}) do redis.call('PEXPIRE', KEYS[1] .. suffix, ARGV[1]) end
local due = redis.call('ZSCORE', KEYS[2], KEYS[1])
keep(KEYS[1], tonumber(ARGV[1]), due and tonumber(due) < OPEN)
local found, bytes, from = {{}}, 0, after
repeat
  local more = redis.call('XRANGE', KEYS[1], '(' .. from, '+', 'COUNT', 32)
  for _, entry in ipairs(more) do
    bytes, from = bytes + size(entry), entry[1]
    if #found > 0 and bytes > tonumber(most) then more = {{}} break end
    found[#found + 1] = entry
  end
until #more < 32
if ARGV[6] == '1' then
  local total
  if found[1] then total = tonumber(of(found[1], 'c')) - size(found[1])
  else total = tonumber(of(redis.call('XRANGE', KEYS[1], after, after)[1], 'c')) end
  local place = string.match(after, '%d+$')
  redis.call('SET', KEYS[1] .. ':read', place .. ' ' .. string.format('%.0f', total), 'PX', ARGV[1])
end
return {{1, found}}
"""

# Returns the last id, of an `open` entry where there was no log.
TAIL: Final = f"""{_LOGS}
local newest = last(KEYS[1])
local id = newest and newest[1]
if not id then
  id = redis.call('XADD', KEYS[1], time[1] .. string.format('%06d', time[2]) .. '-0', 'open', '', 'c', 0)
  charge(KEYS[1], OVERHEAD + ENTRY)
end
keep(KEYS[1], tonumber(ARGV[1]), false)
evict()
return id
"""

# A log that has ended, and that its client was sent all of.
SETTLE: Final = f"""{_LOGS}
local newest = last(KEYS[1])
if newest and of(newest, 'end') then keep(KEYS[1], tonumber(ARGV[1]), true) end
"""

# KEYS: holder, how far its client has read. ARGV: who it is, if it is this one.
RELEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1], KEYS[2]) end
"""

# KEYS: holder. ARGV: this worker, lease prefix. Returns whether another one that lives holds it.
IS_HELD: Final = """
local holder = string.match(redis.call('GET', KEYS[1]) or '', '^%S*')
if holder == '' or holder == ARGV[1] then return 0 end
return redis.call('EXISTS', ARGV[2] .. holder)
"""

# ---- state

# KEYS: state, lists of ended sessions. ARGV: limit, the session, when its id expires (milliseconds, then seconds since
# the epoch), then name, '=' or '-', value.
# Returns 0 if too large. What comes after the end is not kept: nobody would ever remove it.
SAVE: Final = f"""{_IS_ENDED}
for i = 2, #KEYS do if is_ended(KEYS[i], ARGV[2], ARGV[4]) then return 1 end end
local state, size = {{}}, 0
local had = redis.call('HGETALL', KEYS[1])
for i = 1, #had, 2 do state[had[i]] = had[i + 1] end
for i = 5, #ARGV, 3 do
  if ARGV[i + 1] == '=' then state[ARGV[i]] = ARGV[i + 2] else state[ARGV[i]] = nil end
end
for name, value in pairs(state) do size = size + #name + #value end
if size > tonumber(ARGV[1]) then return 0 end
for i = 5, #ARGV, 3 do
  if ARGV[i + 1] == '=' then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2])
  else redis.call('HDEL', KEYS[1], ARGV[i]) end
end
redis.call('PEXPIREAT', KEYS[1], ARGV[3])
return 1
"""
