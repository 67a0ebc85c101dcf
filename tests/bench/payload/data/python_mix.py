"""What whole/python runs: calls, dictionaries, strings, lists, big numbers. Wrong results end it with an error."""


def queens(size, row=0, columns=0, left=0, right=0):
    if row == size:
        return 1
    free, count = ~(columns | left | right) & ((1 << size) - 1), 0
    while free:
        bit = free & -free
        free ^= bit
        count += queens(size, row + 1, columns | bit, (left | bit) << 1, (right | bit) >> 1)
    return count


def words():
    counts = {}
    for number in range(20000):
        word = "w%d" % (number * number % 997)
        counts[word] = counts.get(word, 0) + 1
    return sum(n * n for n in counts.values()), sorted(counts)[:2]


class Account:
    def __init__(self):
        self.balance = 0.0

    def add(self, amount):
        self.balance += amount
        return self


def accounts():
    all_of_them = [Account() for _ in range(100)]
    for turn in range(20000):
        all_of_them[turn % 100].add(turn * 0.25)
    return sum(account.balance for account in all_of_them)


def big_digits():
    product = 1
    for number in range(2, 600):
        product *= number
    return sum(map(int, str(product)))


def check(name, got, known):
    if got != known:
        raise SystemExit("%s: got %r, known is %r" % (name, got, known))


check("queens", queens(7), 40)
check("words", words(), (802020, ["w0", "w1"]))
check("accounts", accounts(), sum(range(20000)) * 0.25)
check("big_digits", big_digits(), 5634)
