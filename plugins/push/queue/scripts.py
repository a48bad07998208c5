"""Scripts: what is done to the queue in Redis in one step, in Lua. Keys that depend on data are made in there: Mimu's
Redis is one server, not a cluster."""

# Counts what waits of each user, whom the key of a job names second. Beside the set of all there is one of each,
# by when they are due: what an instance of an older version has moved on stays in it for a minute at most.
# Returns whether a job has room; for calls, which are few and gone in a minute, there is twice as much.
_OF_USER = """
local function of_user(key) return 'push:later:of:' .. (string.match(key, '^[^|]*|([^|]*)') or '') end
local function has_room(key, job, each, now)
  local of = of_user(key)
  redis.call('ZREMRANGEBYSCORE', of, '-inf', now - 60000)
  return #job <= %d and redis.call('ZCARD', of) < (string.sub(key, 1, 5) == 'call_' and 2 * each or each)
end
local function note(key, due, life)
  redis.call('ZADD', of_user(key), due, key)
  redis.call('EXPIRE', of_user(key), life)
end
"""
JOB = 512  # bytes of a job; the longest has some 260
OF_USER = _OF_USER % JOB

# What happened to users waits a moment, each under its key; again changes only what is waiting.
# KEYS later, jobs; ARGV most, delay, calm, longest, most of a user, life of what is counted of a user in seconds, then
# five of each: key, job, raised, pace, chat.
# Who was pushed to more often than `calm` times since they last looked waits twice as long each time.
# Returns how many found no room.
RAISE = f"""{OF_USER}
local room, refused = tonumber(ARGV[1]) - redis.call('ZCARD', KEYS[1]), 0
local delay, calm, longest = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local each, life = tonumber(ARGV[5]), ARGV[6]
for i = 7, #ARGV, 5 do
  local key, job, raised, pace, chat = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3], ARGV[i + 4]
  if redis.call('ZSCORE', KEYS[1], key) then
    redis.call('HSET', KEYS[2], key, job)
  elseif room <= 0 or not has_room(key, job, each, raised) then
    refused = refused + 1
  else
    local times, wait = tonumber(redis.call('HGET', pace, chat) or 0), delay
    if times > calm then wait = math.min(delay * 2 ^ math.min(times - calm, 20), longest) end
    redis.call('ZADD', KEYS[1], raised + wait, key)
    redis.call('HSET', KEYS[2], key, job)
    note(key, raised + wait, life)
    room = room - 1
  end
end
return refused
"""

# Moves what is due from waiting to be judged.
# KEYS later, jobs, judge, judge now; ARGV most. Returns Redis's clock in ms, how many, and when the next one is due.
DUE = f"""{OF_USER}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, key in ipairs(due) do
  local job = redis.call('HGET', KEYS[2], key)
  redis.call('ZREM', KEYS[1], key)
  redis.call('HDEL', KEYS[2], key)
  redis.call('ZREM', of_user(key), key)
  if job then redis.call('XADD', string.sub(key, 1, 5) == 'call_' and KEYS[4] or KEYS[3], '*', 'job', job) end
end
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return {{now, #due, next[2] and math.floor(tonumber(next[2])) or -1}}
"""

# Ends an entry of a stream, with all that follows from it.
# KEYS stream, later, jobs; ARGV group, entry, most, life of what is counted of a user, how many puts, postponed ones
# and decisions, most of a user; then four of each put (stream, job, and key and due for when that is full), three of
# each postponed one (key, job, due), four of each decision (pace, chat, the seq of the newest message that it is about,
# 1 if it is pushed). A stream that is full takes none: they wait, and those of one key become one.
# Returns how many found no room at all; for calls, which are few and gone in a minute, there is more.
SETTLE = f"""{OF_USER}
local most, life, each, place, refused = tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[8]), 9, 0
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function postpone(key, job, due)
  if redis.call('ZSCORE', KEYS[2], key) then
    redis.call('HSET', KEYS[3], key, job)
  elseif redis.call('ZCARD', KEYS[2]) >= (string.sub(key, 1, 5) == 'call_' and 2 * most or most)
    or not has_room(key, job, each, now) then
    refused = refused + 1
  else
    redis.call('ZADD', KEYS[2], due, key)
    redis.call('HSET', KEYS[3], key, job)
    note(key, due, life)
  end
end
for _ = 1, tonumber(ARGV[5]) do
  local stream, job, key, due = ARGV[place], ARGV[place + 1], ARGV[place + 2], ARGV[place + 3]
  if redis.call('XLEN', stream) < most then
    redis.call('XADD', stream, '*', 'job', job)
  else
    postpone(key, job, due)
  end
  place = place + 4
end
for _ = 1, tonumber(ARGV[6]) do
  postpone(ARGV[place], ARGV[place + 1], ARGV[place + 2])
  place = place + 3
end
for _ = 1, tonumber(ARGV[7]) do
  if ARGV[place + 3] == '1' then redis.call('HINCRBY', ARGV[place], ARGV[place + 1], 1) end
  redis.call('HSET', ARGV[place], 'upto:' .. ARGV[place + 1], ARGV[place + 2])
  redis.call('EXPIRE', ARGV[place], life)
  place = place + 4
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
return refused
"""

# Users have looked: what happened before is nothing to be pushed any more, and they are patient again.
# ARGV life in seconds, then two of each: pace, when in ms.
SEEN = """
for i = 2, #ARGV, 2 do
  local before = tonumber(redis.call('HGET', ARGV[i], 'seen') or 0)
  redis.call('DEL', ARGV[i])
  redis.call('HSET', ARGV[i], 'seen', string.format('%.0f', math.max(before, tonumber(ARGV[i + 1]))))
  redis.call('EXPIRE', ARGV[i], ARGV[1])
end
"""

# A device was told that a call rings: it will have to be told of its end, or at once when the ring is over already.
# KEYS over, told, judge now; ARGV job, life in seconds.
RANG = """
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('XADD', KEYS[3], '*', 'job', ARGV[1])
else
  redis.call('SADD', KEYS[2], ARGV[1])
  redis.call('EXPIRE', KEYS[2], ARGV[2])
end
"""

# A ring is over. KEYS over, told, judge now; ARGV life in seconds. Returns how many devices are told.
RING_OVER = """
redis.call('SET', KEYS[1], 1, 'EX', ARGV[1])
local told = redis.call('SMEMBERS', KEYS[2])
for _, job in ipairs(told) do redis.call('XADD', KEYS[3], '*', 'job', job) end
redis.call('DEL', KEYS[2])
return #told
"""
