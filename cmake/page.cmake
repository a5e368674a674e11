# Writes a C++ source OUT that holds the file IN as the constant NAME, which HEADER declares in NAMESPACE. A raw
# string may be 64 KiB long: the page is cut into several, which the compiler joins.
file(READ ${IN} page)
string(LENGTH "${page}" length)
set(parts "")
foreach(begin RANGE 0 ${length} 16000)
  string(SUBSTRING "${page}" ${begin} 16000 part)
  string(APPEND parts "R\"page(${part})page\"\n")
endforeach()
file(WRITE ${OUT} "#include \"${HEADER}\"\nnamespace ${NAMESPACE} {\nconst std::string_view ${NAME} =\n${parts};\n}\n")
