#pragma once

#include <memory>

#include "ei/base/communicator.h"

namespace ei::mpi {

// The ranks among which a launcher of MPI has started this process (mpirun, or srun --mpi=pmix),
// the same ones in every call; null where none has. Throws Error in a build without MPI.
std::shared_ptr<Communicator> ranks();

}  // namespace ei::mpi
