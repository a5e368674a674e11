# Installs the build and builds examples/hello against it, then runs the example:
# cmake -DSOURCE=DIR -DBUILD=DIR -DCOMPILER=PATH -DFLAGS=.. -P build_example.cmake
set(stage ${BUILD}/stage)
file(REMOVE_RECURSE ${stage} ${BUILD}/hello)
function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    string(JOIN " " command ${ARGV})
    message(FATAL_ERROR "exit code ${result}: ${command}")
  endif()
endfunction()

run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${stage})
run(${CMAKE_COMMAND} -G Ninja -S ${SOURCE}/examples/hello -B ${BUILD}/hello
    -DCMAKE_PREFIX_PATH=${stage} -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_CXX_FLAGS=${FLAGS})
run(${CMAKE_COMMAND} --build ${BUILD}/hello)
file(WRITE ${BUILD}/hello/document.txt "One of the special magic numbers for quiet-harbor is: 4821097.")
execute_process(
  COMMAND ${BUILD}/hello/hello ${SOURCE}/models/needle-8m ${BUILD}/hello/document.txt
          "What is the special magic number for quiet-harbor mentioned in the provided text?"
  OUTPUT_VARIABLE answer RESULT_VARIABLE result)
if(NOT result EQUAL 0 OR NOT answer MATCHES 4821097)
  message(FATAL_ERROR "hello said: ${answer} (exit code ${result})")
endif()
