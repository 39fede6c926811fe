-- Begins the ledger anew if it is still the one whose chain is broken.
--
-- ARGV from 4: the incarnation that is not trusted any more.

if ledger.incarnation == ARGV[4] then
    begin()
end
return 1
