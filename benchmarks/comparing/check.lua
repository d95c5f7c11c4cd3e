-- What wrk runs: it sends what `generators.py` has put above (PATH, PIECES, HEADS, EXPECTED), each request with a number
-- of its own, and checks every answer.

-- Globals of the thread, which done() reads.
wrong, sample = 0, ""

local number = 0
local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function request()
  number = number + 1
  return wrk.format("POST", PATH, HEADS[number % #HEADS + 1], table.concat(PIECES, number))
end

local function occurrences(text, part)
  local found, from = 0, 1
  while true do
    local first, last = string.find(text, part, from, true)
    if not first then return found end
    found, from = found + 1, last + 1
  end
end

local function complaint(status, body)
  if status ~= 200 then return "status " .. status end
  for _, each in ipairs(EXPECTED) do
    local found = occurrences(body, each[1])
    if found ~= each[2] then return each[1] .. " " .. found .. " times instead of " .. each[2] end
  end
end

function response(status, headers, body)
  local why = complaint(status, body)
  if why then
    wrong = wrong + 1
    sample = why .. ": " .. string.sub(body, 1, 300)
  end
end

local function json(text)
  local function escaped(c) return string.format("\\u%04x", string.byte(c)) end
  return '"' .. string.gsub(text, '[%c"\\\128-\255]', escaped) .. '"'
end

function done(summary, latency)
  local wrong, sample = 0, ""
  for _, thread in ipairs(threads) do
    wrong = wrong + thread:get("wrong")
    if thread:get("wrong") > 0 then sample = thread:get("sample") end
  end
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.timeout
  if failed > 0 then
    sample = sample .. string.format(" (connections failed: %d to open, %d to read, %d to write, %d in time)",
      errors.connect, errors.read, errors.write, errors.timeout)
  end
  io.write(string.format(
    'result {"requests": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "wrong": %d, "sample": %s}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    wrong + failed, json(sample)))
end
