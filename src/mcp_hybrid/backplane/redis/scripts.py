"""What the backplane runs inside Redis: the steps that must not be interleaved with another worker's.

A log is a Redis stream. An entry has `d`, a message (empty for a priming event), or `end`; `c`, the bytes of all
messages up to it, by which a log is bounded; and in a call's log `n`, the number that its writer gave it. An `open`
entry marks where a standalone stream was opened.

Times are those of Redis, and leases are judged where they are kept: the clocks of workers play no part.
"""

from __future__ import annotations

from typing import Final

# ---- workers

# KEYS: lease, all workers, inbox. ARGV: this worker, milliseconds of a lease, the last entry that was taken. Returns
# whether there was a lease still.
BEAT: Final = """
local had = redis.call('SET', KEYS[1], '1', 'PX', ARGV[2], 'GET')
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - 60)
redis.call('PEXPIRE', KEYS[2], 60000)
redis.call('XTRIM', KEYS[3], 'MINID', ARGV[3])
redis.call('PEXPIRE', KEYS[3], 60000)
return had and 1 or 0
"""

# KEYS: an inbox, the lease of its worker, all workers. ARGV: that worker, most bytes, the entry's fields.
# An inbox that nobody empties goes with its worker: a minute after it. One that has no worker is not opened, as clients
# may make names up, and one that is full takes no more of what is large.
PUT: Final = """
if redis.call('EXISTS', KEYS[2]) == 0 and not redis.call('ZSCORE', KEYS[3], ARGV[1]) then return 0 end
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

# KEYS: all workers. ARGV: lease prefix. Returns the workers that have a lease.
ALIVE: Final = """
local alive = {}
for _, worker in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if redis.call('EXISTS', ARGV[1] .. worker) == 1 then alive[#alive + 1] = worker end
end
return alive
"""

_TELL_ALL = """
local function tell_all()
  local alive = {}
  for _, worker in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if worker ~= ARGV[1] then
      local inbox = ARGV[2] .. worker
      redis.call('XADD', inbox, 'MAXLEN', '~', 10000, '*', unpack(ARGV, 4, 9))
      redis.call('PEXPIRE', inbox, 60000)
      if redis.call('EXISTS', ARGV[3] .. worker) == 1 then alive[#alive + 1] = worker end
    end
  end
  return alive
end
"""

# KEYS: all workers. ARGV: this worker, inbox prefix, lease prefix, the six fields of a signal.
BROADCAST: Final = f"""{_TELL_ALL}
tell_all()
"""

# KEYS: all workers, the end of a session. ARGV: as BROADCAST, and when the end may be forgotten (milliseconds since the
# epoch). Returns the workers that have a lease.
END: Final = f"""{_TELL_ALL}
redis.call('SET', KEYS[2], '1', 'PXAT', ARGV[10])
return tell_all()
"""

# ---- logs

# KEYS: log, followers, calls. ARGV: most entries, most bytes, milliseconds to keep, inbox prefix.
_LOG = """
local function of(entry, name)
  for i = 1, #entry[2], 2 do if entry[2][i] == name then return entry[2][i + 1] end end
end
local function last() return redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1] end
local function add(field, data, number)
  local before = last()
  local total = #data + (before and tonumber(of(before, 'c')) or 0)
  local fields = {field, data, 'c', total}
  if number ~= '' then fields[5], fields[6] = 'n', number end
  local id = redis.call('XADD', KEYS[1], 'MAXLEN', '=', ARGV[1], '*', unpack(fields))
  local excess = total - tonumber(ARGV[2])
  while excess > 0 do
    local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
    if not first or first[1] == id or tonumber(of(first, 'c')) > excess then break end
    redis.call('XDEL', KEYS[1], first[1])
  end
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return id
end
local function tell_followers()
  for _, worker in ipairs(redis.call('SMEMBERS', KEYS[2])) do
    redis.call('XADD', ARGV[4] .. worker, 'MAXLEN', '~', 10000, '*', 'grown', KEYS[1])
    redis.call('PEXPIRE', ARGV[4] .. worker, 60000)
  end
end
"""

# ARGV: field, data, calls, number. Nothing comes after the end; what was added before is not added again.
APPEND: Final = f"""{_LOG}
local before = last()
if before and of(before, 'end') then return false end
if before and ARGV[8] ~= '' and tonumber(of(before, 'n') or 0) >= tonumber(ARGV[8]) then return before[1] end
local id = add(ARGV[5], ARGV[6], ARGV[8])
if ARGV[7] ~= '' then redis.call('SET', KEYS[3], ARGV[7], 'PX', ARGV[3]) end
if ARGV[5] == 'end' then redis.call('DEL', KEYS[3]) end
tell_followers()
return id
"""

# KEYS: and the lease of the worker that owes. ARGV: what it owes, then the messages that pay it.
PAY: Final = f"""{_LOG}
if redis.call('GET', KEYS[3]) ~= ARGV[5] then return 0 end
if redis.call('EXISTS', KEYS[4]) == 1 then return 1 end
for i = 6, #ARGV do add('d', ARGV[i], '') end
add('end', '', '')
redis.call('DEL', KEYS[3])
tell_followers()
return 2
"""
OWED: Final = 1
PAID: Final = 2

# KEYS: log, followers, holder. ARGV: after, this worker, milliseconds to keep.
# Returns whether `after` is there, and what follows it.
READ: Final = """
if not redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1] then return {0, {}} end
redis.call('SADD', KEYS[2], ARGV[2])
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[3]) end
return {1, redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+')}
"""

# KEYS: log. ARGV: milliseconds to keep. Returns the last id, of an `open` entry where there was no log.
TAIL: Final = """
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local id = last[1] and last[1][1] or redis.call('XADD', KEYS[1], '*', 'open', '', 'c', 0)
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return id
"""

# KEYS: holder. ARGV: who it is, if it is this one.
RELEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""

# KEYS: holder. ARGV: this worker, lease prefix. Returns whether another one that lives holds it.
IS_HELD: Final = """
local holder = string.match(redis.call('GET', KEYS[1]) or '', '^%S*')
if holder == '' or holder == ARGV[1] then return 0 end
return redis.call('EXISTS', ARGV[2] .. holder)
"""

# ---- state

# KEYS: state, the end of its session. ARGV: limit, expiry (milliseconds since the epoch), then name, '=' or '-', value.
# Returns 0 if too large. What comes after the end is not kept: nobody would ever remove it.
SAVE: Final = """
if redis.call('EXISTS', KEYS[2]) == 1 then return 1 end
local state, size = {}, 0
local had = redis.call('HGETALL', KEYS[1])
for i = 1, #had, 2 do state[had[i]] = had[i + 1] end
for i = 3, #ARGV, 3 do
  if ARGV[i + 1] == '=' then state[ARGV[i]] = ARGV[i + 2] else state[ARGV[i]] = nil end
end
for name, value in pairs(state) do size = size + #name + #value end
if size > tonumber(ARGV[1]) then return 0 end
for i = 3, #ARGV, 3 do
  if ARGV[i + 1] == '=' then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2])
  else redis.call('HDEL', KEYS[1], ARGV[i]) end
end
redis.call('PEXPIREAT', KEYS[1], ARGV[2])
return 1
"""
