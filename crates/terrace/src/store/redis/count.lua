-- Counts beside the ledger.
--
-- ARGV from 4: the counter's name, what is added ('' to read only), milliseconds to live (0: for
-- ever).

local name, key = ARGV[4], key_of(ARGV[4], 'count')
return count(key, ARGV[5], tonumber(ARGV[6]), counter_lives(key, name), ledger.incarnation, ledger.last,
    millis(), told)
