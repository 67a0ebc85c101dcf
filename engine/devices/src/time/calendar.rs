//! Dates as a real-time clock shows them, from and to seconds since 1970 (proleptic Gregorian calendar, UTC).

pub const SECONDS_PER_DAY: i64 = 86_400;

/// A date and time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calendar {
    /// 0 to 9999.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

impl Calendar {
    /// The date `seconds` after 1970-01-01 00:00:00; outside the years 0 to 9999 the nearest in them.
    pub fn of_seconds(seconds: i64) -> Self {
        let first = Self { year: 0, month: 1, day: 1, hour: 0, minute: 0, second: 0 }.seconds();
        let last = Self { year: 9999, month: 12, day: 31, hour: 23, minute: 59, second: 59 }.seconds();
        let seconds = seconds.clamp(first, last);
        let (days, time) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
        // An estimate that is never too late, corrected by at most one year.
        let mut year = 1970 + (days * 400).div_euclid(146_097);
        while days_before_year(year + 1) <= days {
            year += 1;
        }
        while days_before_year(year) > days {
            year -= 1;
        }
        let mut day = days - days_before_year(year);
        let mut month = 1;
        while day >= days_in_month(year, month) {
            day -= days_in_month(year, month);
            month += 1;
        }
        Self {
            year: year as u16,
            month,
            day: day as u8 + 1,
            hour: (time / 3600) as u8,
            minute: (time / 60 % 60) as u8,
            second: (time % 60) as u8,
        }
    }

    /// Seconds since 1970. Fields out of range count as the nearest in it.
    pub fn seconds(&self) -> i64 {
        let year = i64::from(self.year.min(9999));
        let month = self.month.clamp(1, 12);
        let before: i64 = (1..month).map(|month| days_in_month(year, month)).sum();
        let days = days_before_year(year) + before + i64::from(self.day).clamp(1, days_in_month(year, month)) - 1;
        let [hour, minute, second] =
            [(self.hour, 23), (self.minute, 59), (self.second, 59)].map(|(n, most)| i64::from(n.min(most)));
        days * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second
    }

    /// 1 is Sunday.
    pub fn weekday(&self) -> u8 {
        // 1970-01-01 was a Thursday.
        (self.seconds().div_euclid(SECONDS_PER_DAY) + 4).rem_euclid(7) as u8 + 1
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in_month(year: i64, month: u8) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to the first of January.
fn days_before_year(year: i64) -> i64 {
    let leap_days = |year: i64| year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    (year - 1970) * 365 + leap_days(year - 1) - leap_days(1969)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_of_eight_centuries_comes_back() {
        let mut expected_weekday = Calendar::of_seconds(-5_000_000_000).weekday();
        let first = -5_000_000_000_i64.div_euclid(SECONDS_PER_DAY);
        for day in first..first + 300_000 {
            let seconds = day * SECONDS_PER_DAY + 12_345;
            let date = Calendar::of_seconds(seconds);
            assert_eq!(date.seconds(), seconds, "{date:?}");
            expected_weekday = if day == first { date.weekday() } else { expected_weekday % 7 + 1 };
            assert_eq!(date.weekday(), expected_weekday);
        }
    }

    #[test]
    fn known_dates() {
        let date = Calendar::of_seconds(951_827_696);
        assert_eq!((date.year, date.month, date.day, date.weekday()), (2000, 2, 29, 3));
        assert_eq!((date.hour, date.minute, date.second), (12, 34, 56));
    }
}
