-- What whole/sqlite runs; sqlite.expected holds its answers.
CREATE TABLE word (id INTEGER PRIMARY KEY, spelling TEXT, weight INTEGER);
BEGIN;
WITH RECURSIVE counter(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counter WHERE n < 8000)
  INSERT INTO word SELECT n, printf('%s%02d', char(97 + n % 26, 97 + n * 7 % 26), n * 7919 % 100), n * 104729 % 1009 FROM counter;
COMMIT;
CREATE INDEX by_spelling ON word (spelling);
SELECT count(*), sum(weight), min(spelling), max(spelling) FROM word;
SELECT substr(spelling, 1, 1) AS letter, count(*), sum(weight) FROM word GROUP BY letter ORDER BY 3 DESC, 1 LIMIT 3;
SELECT count(*), sum(a.weight * b.weight) FROM word a JOIN word b ON b.spelling = a.spelling AND b.id > a.id;
UPDATE word SET weight = weight + 1 WHERE spelling LIKE 'b%';
DELETE FROM word WHERE id % 3 = 0;
SELECT count(*), sum(weight), sum(length(spelling)) FROM word;
SELECT spelling, weight FROM word ORDER BY weight DESC, spelling LIMIT 3;
PRAGMA integrity_check;
