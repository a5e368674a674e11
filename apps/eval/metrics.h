#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ei::eval {

// LongBench's metrics of an answer against one right answer, each from 0 to 1, as its published
// scripts compute them, so that scores compare: where a script does something odd, so do these.
// Texts are UTF-8, characters code points, spaces those of Python's str.split().

// F1 of the two bags of words, without case, ASCII punctuation and articles.
double qa_f1(std::string_view answer, std::string_view truth);

// ROUGE-L of the PyPI package `rouge` (F1, summary level): sentences end at full stops, and what
// counts are the different words in a longest common subsequence of any two sentences, over the
// different words of each text. 0 when a text has none.
double rouge_l(std::string_view answer, std::string_view truth);

// One over the number of classes named in the answer if the right one is among them. Classes whose
// names are part of the right one's do not count, but for those that follow one left out.
double classification(std::string_view answer, std::string_view truth,
                      const std::vector<std::string>& classes);

// The share of the answer's numbers that are the right one: `truth` itself, or that of the
// "Paragraph N" it names. Throws Error when it names none.
double count_match(std::string_view answer, std::string_view truth);
double retrieval_match(std::string_view answer, std::string_view truth);

// Similarity of two lines in whole percent, 2 * (longest common subsequence) / (both lengths), in
// characters. Of the answer, the first line without a backquote, # or //.
double code_similarity(std::string_view answer, std::string_view truth);

}  // namespace ei::eval
