"""Lua scripts: changes to the queue in Redis that happen in one step. They build the keys that depend on data: Mimu's
Redis is one server, not a cluster."""

# Counts the waiting jobs of each user, the second part of a job's key. Besides the set of all jobs there is one for
# each user, by due time: entries that an instance of an older version has moved on stay in it for a minute at most.
# has_room returns true if there is room for a job; calls, which are few and gone in a minute, have twice the room.
_USER_JOBS = """
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
MAX_JOB = 512  # bytes of a job; the longest has some 260
USER_JOBS = _USER_JOBS % MAX_JOB

# Queues events of users, each under its key; an event whose key waits already replaces the waiting job.
# KEYS later, jobs; ARGV most, delay, calm, longest, most of a user, life of a user's state in seconds, then
# five of each: key, job, raised, pace, chat.
# After more than `calm` pushes since a user was last online the wait doubles with each push.
# Returns for how many there was no room.
RAISE = f"""{USER_JOBS}
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

# Moves due jobs to the judge.
# KEYS later, jobs, judge, judge now; ARGV most. Returns Redis's clock in ms, how many, and when the next one is due.
DUE = f"""{USER_JOBS}
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

# Acknowledges an entry of a stream, and queues the jobs of its outcome.
# KEYS stream, later, jobs; ARGV group, entry, most, life of a user's state, how many puts, postponed ones
# and decisions, most of a user; then four of each put (stream, job, and key and due for when that is full), three of
# each postponed one (key, job, due), four of each decision (pace, chat, the seq of the newest message that it is about,
# 1 if it is pushed). If a stream is full, its jobs are postponed; jobs with the same key are merged.
# Returns for how many there was no room at all; calls, which are few and gone in a minute, have more room.
SETTLE = f"""{USER_JOBS}
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

# Users were online: earlier events are no longer pushed, and the wait between pushes starts again at its shortest.
# ARGV life in seconds, then two of each: pace, when in ms.
SEEN = """
for i = 2, #ARGV, 2 do
  local before = tonumber(redis.call('HGET', ARGV[i], 'seen') or 0)
  redis.call('DEL', ARGV[i])
  redis.call('HSET', ARGV[i], 'seen', string.format('%.0f', math.max(before, tonumber(ARGV[i + 1]))))
  redis.call('EXPIRE', ARGV[i], ARGV[1])
end
"""

# A device rings: keep its hangup for the end of the ring, or queue it now if the ring is over already.
# KEYS over, rung, judge now; ARGV job, life in seconds.
RANG = """
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('XADD', KEYS[3], '*', 'job', ARGV[1])
else
  redis.call('SADD', KEYS[2], ARGV[1])
  redis.call('EXPIRE', KEYS[2], ARGV[2])
end
"""

# A ring is over. KEYS over, rung, judge now; ARGV life in seconds. Returns how many hangups were queued.
RING_OVER = """
redis.call('SET', KEYS[1], 1, 'EX', ARGV[1])
local hangups = redis.call('SMEMBERS', KEYS[2])
for _, job in ipairs(hangups) do redis.call('XADD', KEYS[3], '*', 'job', job) end
redis.call('DEL', KEYS[2])
return #hangups
"""
