#pragma once

#include <string_view>

namespace ei {

// A text of many kinds, over which a model's sketch is measured: whatever prompts are made of
// should be in it. Changing it changes what every model selects.
inline constexpr std::string_view kSketchText =
    R"text(The harbour office opened at six, an hour before the first boat. Marta hung her coat behind the door, lit the lamp over the ledger and wrote the date at the top of a fresh page. Outside, fog lay so thick on the water that the far pier had disappeared, and with it the two cranes, the customs shed and the blue crane driver who always waved. She liked such mornings. Nobody asked for anything, and the radio spoke only when it had to.

"Station, this is the Perpetua," it said at ten past. "We have the bell buoy on our left, I think. Can you see us?"

"I cannot see my own window," Marta answered. "What is your heading?"

"Two hundred and ten degrees, four knots. The skipper says it is slack water."

"Then the skipper has last week's table. The ebb began forty minutes ago. Come round to two hundred and thirty, keep the bell where it is, and count to three hundred."

There was a silence in which she imagined an argument. Then: "Two hundred and thirty. Counting."

She wrote it down: *Perpetua, 06:10, entering from the north-west, advised of current.* Her father had kept the book before her, and his father before him; their hands filled nineteen volumes on the shelf, each with a storm or a drowning in it and three hundred and fifty days of nothing at all. It was the nothing that she was proud of.

## How to read a tide table

1. Find the day. Times are local, without summer time.
2. Take the height of high water and of the low water that follows. Their difference is the *range*.
3. In the first hour the water falls by a twelfth of the range, in the second by two twelfths, then three, three, two and one.
4. Add the correction of your harbour, which is printed on the last page and may be negative.

| Harbour | High water | Height (m) | Low water | Height (m) | Correction (min) |
|---|---|---:|---|---:|---:|
| Northgate | 05:28 | 4.7 | 11:51 | 0.9 | 0 |
| Saint Olave | 05:46 | 4.4 | 12:03 | 1.1 | +18 |
| Low Ferry | 04:57 | 5.2 | 11:20 | 0.6 | -31 |
| Grey Sound | 06:15 | 3.9 | 12:40 | 1.3 | +47 |

The same rule as a small program:

```python
def height(high, low, hours):
    """Height of the water `hours` after high water, by the rule of twelfths."""
    steps = [0, 1, 3, 6, 9, 11, 12]
    if not 0 <= hours <= 6:
        raise ValueError(f"hours is {hours}, expected 0 to 6")
    i = int(hours)
    part = steps[i] + (hours - i) * (steps[min(i + 1, 6)] - steps[i])
    return high - (high - low) * part / 12

for h in range(7):
    print(h, round(height(4.7, 0.9, h), 2))   # 4.7 4.38 3.75 2.8 1.85 1.22 0.9
```

And what a sensor of the harbour sends every minute, as one line:

{"id": 40213, "station": "northgate-2", "time": "2031-03-09T06:14:00Z", "level_m": 4.512, "wind": {"from": 240, "knots": 3.5}, "battery": 0.87, "ok": true, "notes": []}

Questions that visitors ask, and their answers:

Q: Why does the water come later each day?
A: Because the moon goes round the earth in the same direction in which the earth turns. After twenty-four hours it has moved on, and the harbour needs another fifty minutes to catch up with it.

Q: Is the table ever wrong?
A: Every day. It knows the sun and the moon, but neither the wind nor the pressure of the air. A gale from the west can add half a metre; a hectopascal less of pressure adds one centimetre.

Q: Who was Olave?
A: A king, a saint, or a ferryman who was paid twice. The sources differ (see Harl, *Names of the Coast*, 2nd ed., pp. 88-93, and the reply by Benning, vol. IV, no. 2).

港口的早晨很安静。雾气笼罩着水面，看不见对岸的码头。玛尔塔打开灯，在本子上写下日期：三月九日，星期日，六点十分。她的祖父曾经说过：“海不会等人，但是会原谅耐心的人。”今天的潮水比昨天晚五十分钟，最高水位是四点七米。

Au bout du quai, le vieux Hamon réparait ses filets sans lever les yeux. « Tu attends quelqu'un ? » demanda-t-il. Elle haussa les épaules. Am Abend, wenn der Nebel sich hob, würde man von hier aus die Lichter der anderen Küste sehen, eines nach dem anderen, wie Noten auf einer Linie.

The committee met for the third time on the 14th. Present were the harbour master, two members of the council, the engineer and, by telephone, a lawyer of the insurance. The chair stated that the breakwater had been inspected in accordance with section 7 (b) of the agreement; that of 1,280 blocks 37 had moved by more than 5 cm; and that the cost of repair was estimated at 412,000, to be borne in equal parts, unless one of the parties could be shown to have neglected its duties under section 9. The lawyer objected to the word "neglected". It was resolved to replace it by "failed to perform", to ask for a second estimate before the end of the quarter, and to adjourn.

Let x be the height of a wave and p(x) the share of waves that are higher. For a sea that has been stirred by a steady wind, p(x) = exp(-2 (x / H)^2), where H is the mean of the highest third. So one wave in a hundred is higher than 1.52 H, one in a thousand higher than 1.86 H; and of the 700 waves of an hour the highest is likely to be 1.8 times H. It follows that whoever builds for H builds too low. To see this, take logarithms: ln(1/100) = -4.605, half of which is 2.303, whose root is 1.517.

    $ tide --harbour northgate --days 2 | sort -k2 | head -n 3
    2031-03-09 05:28  4.7 m  high
    2031-03-09 11:51  0.9 m  low
    2031-03-09 17:55  4.6 m  high
    $ echo $?
    0

#include <vector>

// Mean of the highest third.
double significant(std::vector<double> heights) {
  std::sort(heights.rbegin(), heights.rend());
  const size_t n = std::max<size_t>(1, heights.size() / 3);
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += heights[i];
  return sum / static_cast<double>(n);
}

At three hundred the Perpetua came out of the fog, first her mast, then a lamp, then the whole small ship with her nets up and nobody on deck but a boy, who was still counting aloud. He stopped when he saw the pier. "Two hundred and ninety-eight," he called across the water, as if that settled something, and Marta, who had gone out to take the line, laughed for the first time that day.

"Tell your skipper that he owes me a tide table," she said. "And two numbers."

The boy looked at the rope in his hands. "He says that you always know where everybody is. How do you do it?"

She thought about it while she made the line fast: round the post, under, over, and through. "I do not know where everybody is," she said at last. "I know where they were. And then I remember what the water does. Most of what I was told I never need again; but now and then somebody asks for a thing that was said years ago, one line in nineteen books, and then it is good to know roughly on which shelf to look."

To do before noon: 1) send the report of the 8th; 2) call Mr. Adeyemi about the pump (tel. 0291 / 55 03 17, ext. 4); 3) paint for the door, green, 2.5 l; 4) ask Ines whether the key of shed no. 12 is still under the third stone; 5) bread.

Dear Ms Lindqvist,

thank you for your letter of 2 March. The parcel you are looking for arrived on the Aurora, was signed for by a Mr Teague, and left again the same day for Grey Sound. I enclose a copy of the page. As to your other question, the password for the gate was changed on Friday; it is now the name of the lighthouse keeper's dog, written backwards, followed by the year in which the old mole was finished. I trust that you remember both.

Yours sincerely,
M. Harbour, Northgate
)text";

}  // namespace ei
